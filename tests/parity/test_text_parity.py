"""Cleaning, tokenizing and the whole text path against WanPipeline and transformers."""

from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import write_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast, UMT5EncoderModel
from transformers import UMT5Config as ReferenceConfig
from umt5_reference import convert, randomize

from sixbit_jax.models import umt5
from sixbit_jax.text import clean, load_tokenizer, zero_padding

pytestmark = pytest.mark.parity

PROMPTS = [
    "a red cat and a dog runs",
    "  a\u00a0red\t\tcat &amp;amp; a dog,\n\nrunning. ",
    "cats and dogs " * 40,
    "ein schÃ¶ner Hund, 红色的猫 und \u201cred\u201d",
    "the \ufb01lm &lt;pad&gt; </s> red",
    "",
]


@pytest.mark.parametrize(
    "prompt",
    [
        *PROMPTS,
        "cats &amp;amp;amp;amp; dogs",
        "a&nbsp;&#133;b&#x1c;c",
        "x\u2003y\u3000z\u200bq\u2028r\x85s",
        "\x1b[31mred\x1b[0m cat\x07",
        "l\u2019\u00e9t\u00e9 \uff26\uff35\uff2c\uff2c width",
        "a\udc80b",
        "\u00e2\u20ac\u0153red\u00e2\u20ac\u009d",
    ],
)
def test_clean_equals_prompt_clean(prompt: str):
    assert clean(prompt) == prompt_clean(prompt)


@given(st.text(st.characters() | st.sampled_from("&;#x1ampâ€œÃ \t\x1c\x85\u3000\u2028"), max_size=40))
@settings(max_examples=200, deadline=None)
def test_clean_equals_prompt_clean_on_anything(prompt: str):
    assert clean(prompt) == prompt_clean(prompt)


@pytest.mark.parametrize("length", [6, 40, 512])
def test_ids_and_mask_equal_transformers(tmp_path: Path, length: int):
    folder = write_tokenizer(tmp_path)
    direct = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    prompts = [prompt_clean(prompt) for prompt in PROMPTS]
    ids, mask = load_tokenizer(folder)(PROMPTS, length=length)
    for reference in (direct, AutoTokenizer.from_pretrained(folder)):
        expected = reference(prompts, padding="max_length", max_length=length, truncation=True)
        np.testing.assert_array_equal(ids, expected.input_ids)
        np.testing.assert_array_equal(mask, expected.attention_mask)


def test_context_equals_the_pipeline(tmp_path: Path):
    """Prompt to the tensor that the transformer reads: 512 rows, zero beyond the prompt."""
    folder = write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(folder)
    config = ReferenceConfig(vocab_size=tokenizer.vocab_size, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=2)
    encoder = randomize(UMT5EncoderModel(config).eval())
    pipeline = SimpleNamespace(
        tokenizer=AutoTokenizer.from_pretrained(folder), text_encoder=encoder, _execution_device=torch.device("cpu")
    )
    with torch.no_grad():
        expected = WanPipeline._get_t5_prompt_embeds(pipeline, PROMPTS, max_sequence_length=512).numpy()

    ids, mask = (jnp.asarray(x) for x in tokenizer(PROMPTS))
    our_config, params = convert(encoder)
    context = np.asarray(zero_padding(umt5.encode(params, our_config, ids, mask), mask))
    assert context.shape == expected.shape == (len(PROMPTS), 512, 32)
    assert np.array_equal(context == 0, expected == 0)
    # The bar. Rounding alone gives a few 1e-6 at these sizes (see test_umt5_parity.py).
    assert np.abs(context - expected).max() <= 1e-4 * np.abs(expected).max()
