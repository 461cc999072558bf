"""Cleaning, tokenizing and padding, with a tokenizer small enough to read."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_tokenizer import PIECES, write_tokenizer

from sixbit_jax.errors import UserError
from sixbit_jax.text import Tokenizer, clean, load_tokenizer, zero_padding

PAD, END, UNKNOWN = 0, 1, 2
FIRST_PIECE = 3


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return load_tokenizer(write_tokenizer(tmp_path))


def piece_id(piece: str) -> int:
    return FIRST_PIECE + PIECES.index(piece)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("  a  red\tcat\r\nruns ", "a red cat runs"),
        ("a\u00a0red\u3000cat\u2003runs", "a red cat runs"),
        ("cats &amp; dogs", "cats & dogs"),
        ("cats &amp;amp; dogs", "cats & dogs"),
        ("cats &amp;amp;amp; dogs", "cats & dogs"),  # ftfy undoes one level, unescaping the other two
        ("schÃ¶n", "schön"),
        ("\u201cred\u201d", '"red"'),
        ("a\udc80b", "a\ufffdb"),
        ("红色的猫", "红色的猫"),
        (" \n ", ""),
    ],
)
def test_clean(prompt: str, expected: str):
    assert clean(prompt) == expected


def test_ids_end_with_the_end_token_and_are_padded(tokenizer: Tokenizer):
    ids, mask = tokenizer(["a red cat", "a  dog\n"], length=6)
    words = [[piece_id(piece) for piece in pieces] for pieces in (["▁a", "▁red", "▁cat"], ["▁a", "▁dog"])]
    assert ids.tolist() == [[*words[0], END, PAD, PAD], [*words[1], END, PAD, PAD, PAD]]
    assert mask.tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert ids.dtype == mask.dtype == np.int32


def test_default_length_is_512(tokenizer: Tokenizer):
    assert tokenizer(["a"])[0].shape == (1, 512)


def test_truncation_keeps_the_end_token(tokenizer: Tokenizer):
    ids, mask = tokenizer(["a red cat and a dog"], length=4)
    assert ids.tolist() == [[piece_id("▁a"), piece_id("▁red"), piece_id("▁cat"), END]]
    assert mask.all()


def test_a_prompt_that_just_fits_is_whole(tokenizer: Tokenizer):
    ids, _ = tokenizer(["a red cat"], length=4)
    assert ids.tolist() == [[piece_id("▁a"), piece_id("▁red"), piece_id("▁cat"), END]]


def test_empty_prompt_is_one_end_token(tokenizer: Tokenizer):
    ids, mask = tokenizer([" "], length=3)
    assert ids.tolist() == [[END, PAD, PAD]]
    assert mask.tolist() == [[1, 0, 0]]


def test_unknown_pieces_are_named_once_and_in_order(tokenizer: Tokenizer):
    assert tokenizer.unknown_words("a 猫 and a zebra, a 猫 runs") == ["猫", "z"]
    assert tokenizer.unknown_words("a red cat") == []
    ids, _ = tokenizer(["a 猫"], length=8)
    assert UNKNOWN in ids


def test_vocab_size_counts_every_id(tokenizer: Tokenizer):
    assert tokenizer.vocab_size == FIRST_PIECE + len(PIECES)


def test_names_of_special_tokens_are_optional(tmp_path: Path):
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert load_tokenizer(tmp_path).unknown_words("猫") == ["猫"]


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_unreadable_file_is_named(tmp_path: Path, file: str):
    write_tokenizer(tmp_path)
    (tmp_path / file).write_text("{")
    with pytest.raises(UserError, match=file) as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("template", ["$A", "</s> $A", "$A </s> </s>"])
def test_a_tokenizer_without_exactly_one_end_token_is_refused(tmp_path: Path, template: str):
    write_tokenizer(tmp_path, template=template)
    with pytest.raises(UserError, match="does not end prompts with one </s>"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"), [("pad_token", "no padding token <nil>"), ("eos_token", "end prompts with one <nil>")]
)
def test_missing_special_token_is_named(tmp_path: Path, name: str, message: str):
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({name: "<nil>"}))
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


def test_zero_padding_clears_rows_without_a_token():
    context = jnp.full((2, 3, 4), jnp.nan).at[0, :2].set(1).at[1, :1].set(2)
    cleared = zero_padding(context, jnp.asarray([[1, 1, 0], [1, 0, 0]]))
    assert np.asarray(cleared[..., 0]).tolist() == [[1, 1, 0], [2, 0, 0]]
