"""Prompts to token ids, and the two rules about padding that Wan was trained with.

    prompt --clean--> text --Tokenizer--> ids, mask (length 512) --umt5.encode--> context --zero_padding--> context

The transformer reads all rows of the context without a mask, so padding rows have to be zero, not merely ignored.
"""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sixbit_jax.errors import UserError

if TYPE_CHECKING:
    import tokenizers


def clean(prompt: str) -> str:
    """Repair broken encodings, undo HTML escapes (also doubled ones), make every run of white space one space.

    >>> clean("a cat &amp;amp; a\\n dog ")
    'a cat & a dog'
    """
    import ftfy  # here, because it is slow to import and only prompts need it

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


class Tokenizer:
    """A `tokenizers` tokenizer that ends every prompt with one end-of-sequence token."""

    def __init__(self, backend: "tokenizers.Tokenizer", *, pad_id: int, end_id: int, unknown_id: int | None):
        self._backend = backend
        self._pad_id, self._end_id, self._unknown_id = pad_id, end_id, unknown_id

    @property
    def vocab_size(self) -> int:
        """How many ids there are, added tokens included."""
        return self._backend.get_vocab_size()

    def __call__(
        self, prompts: Sequence[str], *, length: int = 512
    ) -> tuple[Int[np.ndarray, "b p"], Int[np.ndarray, "b p"]]:
        """Ids and mask of the cleaned prompts, padded to `length`. A longer prompt keeps its end token."""
        ids = np.full((len(prompts), length), self._pad_id, np.int32)
        mask = np.zeros((len(prompts), length), np.int32)
        for row, prompt in enumerate(prompts):
            tokens = self._backend.encode(clean(prompt)).ids
            if len(tokens) > length:
                tokens = [*tokens[: length - 1], self._end_id]
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        return ids, mask

    def unknown_words(self, prompt: str) -> list[str]:
        """The pieces of the cleaned prompt that have no token of their own, each once."""
        text = clean(prompt)
        encoding = self._backend.encode(text)
        pieces = (
            text[start:end].strip()
            for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if token == self._unknown_id
        )
        return list(dict.fromkeys(pieces))


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Read `tokenizer.json` (and the names of the special tokens, where `tokenizer_config.json` has them)."""
    import tokenizers

    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"--model: {file} is missing")
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(f"--model: {file} is not a tokenizer: {error}") from None
    # The file may carry the settings of whoever saved it.
    backend.no_padding()
    backend.no_truncation()
    names = _special_tokens(file.with_name("tokenizer_config.json"))
    pad_id = backend.token_to_id(names["pad_token"])
    if pad_id is None:
        raise UserError(f"--model: {file} has no padding token {names['pad_token']}")
    end_id = backend.token_to_id(names["eos_token"])
    sample = backend.encode("a").ids
    if end_id is None or sample.count(end_id) != 1 or sample[-1] != end_id:
        raise UserError(f"--model: {file} does not end prompts with one {names['eos_token']}, as UMT5 needs")
    return Tokenizer(backend, pad_id=pad_id, end_id=end_id, unknown_id=backend.token_to_id(names["unk_token"]))


def zero_padding(context: Float[Array, "b p d"], mask: Int[Array, "b p"]) -> Float[Array, "b p d"]:
    """Set the encoder's output to zero where there is no token."""
    return jnp.where(mask[..., None] > 0, context, jnp.zeros_like(context))


def _special_tokens(file: Path) -> dict[str, str]:
    """The names of the padding, end and unknown tokens; without the file, those every UMT5 tokenizer uses."""
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise UserError(f"--model: {file} is not JSON: {error}") from None
    for key in names:
        if value := config.get(key):
            names[key] = value if isinstance(value, str) else value["content"]
    return names
