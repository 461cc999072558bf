"""transformers reads the written tokenizer and gives the same ids and masks."""

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sixbit_jax.text import load_tokenizer
from sixbit_jax.tiny.tokenizer import write_tokenizer

pytestmark = pytest.mark.parity

PROMPTS = [
    "a small red circle drifts to the upper left over a blue striped background",
    "Over a Plain gray background, an orange star orbits clockwise.",
    "a purple zebra!",
    "",
]


@pytest.mark.parametrize("reader", [AutoTokenizer, PreTrainedTokenizerFast])
def test_transformers_agrees(reader: type, tmp_path: Path):
    write_tokenizer(tmp_path)
    theirs = reader.from_pretrained(tmp_path)(PROMPTS, padding="max_length", max_length=32, truncation=True)
    ids, mask = load_tokenizer(tmp_path)(PROMPTS, length=32)
    np.testing.assert_array_equal(theirs["input_ids"], ids)
    np.testing.assert_array_equal(theirs["attention_mask"], mask)
