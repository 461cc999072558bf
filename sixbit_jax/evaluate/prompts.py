"""Prompts to evaluate on, with the truth about them where it is known.

a .txt file        one prompt a line, nothing known of it
a .jsonl file      one {"prompt": …, "truth": {…}} a line, as `write_prompts` writes them
held_out(n)        the tiny world's own, which training never shows
shown(n)           others of the tiny world, to calibrate on
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sixbit_jax.errors import UserError
from sixbit_jax.outputs import write_text
from sixbit_jax.tiny.attributes import Attributes, ObjectAttributes

_HELD_OUT_SEED, _SHOWN_SEED = 7_000_003, 7_000_103  # distinct from those of training and of the model's own assessment


@dataclasses.dataclass(frozen=True)
class Prompt:
    text: str
    truth: Attributes | None = None


def read_prompts(path: Path, flag: str = "--prompts") -> list[Prompt]:
    """The prompts of a file, in its order."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag} {path}: {getattr(error, 'strerror', None) or error}") from None
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UserError(f"{flag} {path}: has no prompts; one a line")
    if path.suffix != ".jsonl":
        return [Prompt(line) for _, line in numbered]
    return [_parse(line, f"{flag} {path}: line {number}") for number, line in numbered]


def write_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    """A .jsonl file that `read_prompts` reads back."""
    write_text(path, "".join(json.dumps(_encode(prompt)) + "\n" for prompt in prompts))


def held_out(count: int) -> list[Prompt]:
    """Captions of combinations that training holds out; the first n of more are the same."""
    from sixbit_jax.tiny.prompts import held_out_prompts

    return [Prompt(text, truth) for text, truth in held_out_prompts(count, _HELD_OUT_SEED)]


def shown(count: int) -> list[Prompt]:
    """Captions of combinations that training does show: what is calibrated on them is not tested on them."""
    from sixbit_jax.tiny.prompts import held_out_prompts

    return [Prompt(text, truth) for text, truth in held_out_prompts(count, _SHOWN_SEED, held_out=False)]


def _encode(prompt: Prompt) -> dict[str, Any]:
    truth = None if prompt.truth is None else dataclasses.asdict(prompt.truth)
    return {"prompt": prompt.text, "truth": truth}


def _parse(line: str, where: str) -> Prompt:
    try:
        fields = json.loads(line)
        truth = fields.get("truth")
        if truth is None:
            return Prompt(fields["prompt"])
        objects = tuple(ObjectAttributes(**each) for each in truth["objects"])
        return Prompt(fields["prompt"], Attributes(**truth | {"objects": objects}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{where} is not {{"prompt": …, "truth": {{…}}}}: {error}') from None
