"""What an assessment leaves: JSON lines for programs, a Markdown page and contact sheets for people.

summary.jsonl     a line for the autoencoder, a line for each pair of steps and guidance
videos.jsonl      a line for each generated video: prompt, seed, what was asked for, what was read
assessment.md     the tables
*.png             the first prompts with all their seeds; the first videos that are wrong; originals and copies
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sixbit_jax.evaluate.contact_sheet import write_contact_sheet
from sixbit_jax.outputs import write_text
from sixbit_jax.tiny.assess import Outcome, Shown
from sixbit_jax.tiny.assess_vae import Clip
from sixbit_jax.tiny.tallies import ALL, EACH_OF_TWO, ONE, TWO

_PROMPTS_SHOWN, _WRONG_SHOWN, _CLIPS_SHOWN = 12, 24, 8
_GROUPS = (ALL, ONE, TWO, EACH_OF_TWO)
_SCORING = f"""Read by `sixbit_jax.evaluate.captions`, which knows the palette and the outlines and has learned nothing.
A video about two objects is right in an attribute when both objects are ("{TWO}", and in "{ALL}"); "{EACH_OF_TWO}"
counts them one by one. A described object that is not to be seen is wrong in everything. Size and speed are asked only
of prompts about one object that say them."""


def write_summary(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """`summary.jsonl` and `assessment.md`; every line says in "what" which of the two kinds it is."""
    write_text(folder / "summary.jsonl", _json_lines(lines))
    sections = [_SECTIONS[line["what"]](line) for line in lines]
    write_text(folder / "assessment.md", "\n\n".join(["# Assessment", *sections]) + "\n")


def write_outcomes(folder: Path, outcomes: Mapping[str, Outcome]) -> None:
    """`videos.jsonl`, and two contact sheets for each named outcome."""
    lines = [{"run": name} | _describe(shown) for name, outcome in outcomes.items() for shown in outcome.shown]
    write_text(folder / "videos.jsonl", _json_lines(lines))
    for name, outcome in outcomes.items():
        first = [i for i, shown in enumerate(outcome.shown) if shown.prompt in _first_prompts(outcome)]
        first = sorted(first, key=lambda i: _first_prompts(outcome).index(outcome.shown[i].prompt))
        _write_sheet(folder / f"{name}.png", outcome, first)
        wrong = [i for i, shown in enumerate(outcome.shown) if shown.wrong][:_WRONG_SHOWN]
        if wrong:
            _write_sheet(folder / f"{name}-wrong.png", outcome, wrong)


def write_clips(path: Path, clips: Sequence[Clip]) -> None:
    """Rendered scenes, each above its copy."""
    shown = clips[:_CLIPS_SHOWN]
    videos = [video for clip in shown for video in (clip.original, clip.copy)]
    write_contact_sheet(path, videos, ["rendered", "through the autoencoder"] * len(shown))


def _first_prompts(outcome: Outcome) -> list[str]:
    return list(dict.fromkeys(shown.prompt for shown in outcome.shown))[:_PROMPTS_SHOWN]


def _write_sheet(path: Path, outcome: Outcome, chosen: Sequence[int]) -> None:
    videos = [video for of_seed in outcome.videos for video in of_seed]
    write_contact_sheet(path, [videos[i] for i in chosen], [_title(outcome.shown[i]) for i in chosen])


def _title(shown: Shown) -> str:
    wrong = f"wrong: {', '.join(shown.wrong)}; " if shown.wrong else ""
    return f"{wrong}seed {shown.seed}: {shown.prompt}"


def _describe(shown: Shown) -> dict[str, Any]:
    return {
        "prompt": shown.prompt,
        "seed": shown.seed,
        "wrong": shown.wrong,
        "truth": dataclasses.asdict(shown.truth),
        "reading": dataclasses.asdict(shown.reading),
    }


def _json_lines(lines: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def _captions_section(line: Mapping[str, Any]) -> str:
    counts = {group: line["counts"][group] for group in _GROUPS if group in line["counts"]}
    names = dict.fromkeys(name for answers in counts.values() for name in answers)
    rows = [[name, *(_share(answers.get(name)) for answers in counts.values())] for name in names]
    title = f"## Captions: {line['steps']} steps, guidance {line['guidance']:g}"
    made = f"{line['prompts']} held-out prompts, seeds 0 to {line['seeds'] - 1}, {line['dtype']}. {_SCORING}"
    spread = "; ".join(f"{name} {value:.4f}" for name, value in line["distances"].items())
    return "\n\n".join([title, made, _table(["right", *counts], rows), f"RMS distance of videos in [0, 1]: {spread}."])


def _autoencoder_section(line: Mapping[str, Any]) -> str:
    title = f"## Autoencoder: {line['clips']} held-out clips"
    quality = (
        f"PSNR {line['psnr_mean']:.2f} dB, lowest {line['psnr_lowest']:.2f}. Flicker, in levels of 255 between "
        f"neighbouring frames: {line['flicker']:.3f}, where the original stands still {line['flicker_still']:.3f}."
    )
    before, after = line["accuracy_rendered"], line["accuracy_autoencoded"]
    rows = [[name, f"{before[name]:.1%}", f"{after[name]:.1%}"] for name in before]
    return "\n\n".join([title, quality, _table(["read right", "rendered", "through the autoencoder"], rows)])


_SECTIONS = {"captions": _captions_section, "autoencoder": _autoencoder_section}


def _share(tally: Mapping[str, int] | None) -> str:
    if tally is None:
        return ""
    return f"{tally['right'] / tally['total']:.1%} ({tally['right']}/{tally['total']})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
