"""The UMT5 encoder against transformers, on random small configurations.

Rounding: sums of a few dozen f32 terms err by about √64 · 2^-24 = 5e-7 of their scale; a softmax turns an absolute
error of its scores into a relative one, and errors of a few layers add up to some 1e-6. The bound is the project's
1e-4; a wrong bucket, norm, activation or order is off by 1e-2 or more.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import UMT5Config as ReferenceConfig
from transformers import UMT5EncoderModel
from umt5_reference import convert, convert_tensors, randomize

from converters import umt5 as tables
from sixbit_jax.models import umt5
from sixbit_jax.models.umt5 import UMT5Config
from sixbit_jax.shapes import Params

pytestmark = pytest.mark.parity

SIZES = {
    "one layer": dict(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2),
    "inner wider than model": dict(d_model=32, d_kv=16, d_ff=40, num_layers=2, num_heads=5),
    "other buckets": dict(
        d_model=24, d_kv=12, d_ff=64, num_layers=4, num_heads=3, relative_attention_num_buckets=16,
        relative_attention_max_distance=50, layer_norm_epsilon=1e-2,
    ),
}  # fmt: skip
# Original name of each transformers name within a block, written out as a second opinion on the converter's table.
ORIGINAL = {
    "layer.0.layer_norm": "norm1",
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.0.SelfAttention": "attn",
    "layer.1.layer_norm": "norm2",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
    "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2",
}


def build(size: str, seed: int = 0) -> UMT5EncoderModel:
    return randomize(UMT5EncoderModel(ReferenceConfig(vocab_size=61, **SIZES[size])).eval(), seed)


def inputs(lengths: list[int], tokens: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(3).integers(0, 61, (len(lengths), tokens)).astype(np.int32)
    mask = (np.arange(tokens)[None] < np.array(lengths)[:, None]).astype(np.int32)
    return ids, mask


def run_reference(model: UMT5EncoderModel, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(ids).long(), torch.from_numpy(mask)).last_hidden_state.float().numpy()


def run_ours(params: Params, config: UMT5Config, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(umt5.encode, static_argnums=1)(params, config, jnp.asarray(ids), jnp.asarray(mask)))


def relative_error(ours: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(ours - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("lengths", [[1], [7, 3], [40, 40, 1], [200, 129], [9, 0]])
@pytest.mark.parametrize("size", SIZES)
def test_encoder(size: str, lengths: list[int]):
    """All rows, also those of padding; a row without any token is in too."""
    model = build(size)
    config, params = convert(model)
    ids, mask = inputs(lengths, max(lengths))
    assert relative_error(run_ours(params, config, ids, mask), run_reference(model, ids, mask)) <= 1e-4


def test_512_tokens_of_a_deeper_encoder():
    model = build("other buckets", seed=1)
    config, params = convert(model)
    ids, mask = inputs([512, 77], 512)
    assert relative_error(run_ours(params, config, ids, mask), run_reference(model, ids, mask)) <= 1e-4


def test_bf16_is_at_least_as_close_to_f32_as_the_reference():
    """We keep the residual stream, norms, scores and gate in f32, the reference rounds them."""
    model = build("other buckets")
    ids, mask = inputs([60, 33], 60)
    exact = run_reference(model, ids, mask)
    config, params = convert(model, jnp.bfloat16)
    theirs = run_reference(model.to(torch.bfloat16), ids, mask)
    ours = run_ours(params, config, ids, mask)
    real = mask[..., None] > 0
    assert np.sqrt(np.mean((ours - exact) ** 2 * real)) <= np.sqrt(np.mean((theirs - exact) ** 2 * real))


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (16, 64), (64, 256), (32, 100), (8, 20)])
def test_position_buckets_are_equal(buckets: int, distance: int):
    attention = build("one layer").encoder.block[0].layer[0].SelfAttention
    attention.relative_attention_num_buckets, attention.relative_attention_max_distance = buckets, distance
    offsets = torch.arange(600)[None] - torch.arange(600)[:, None]
    config = UMT5Config(8, 8, 1, 1, 8, num_buckets=buckets, max_distance=distance)
    expected = attention._relative_position_bucket(offsets).numpy()
    np.testing.assert_array_equal(umt5.position_buckets(config, 600), expected)


def to_original(name: str) -> str:
    name = name.replace("encoder.block.", "blocks.").replace("encoder.final_layer_norm", "norm")
    name = name.replace("shared", "token_embedding")
    for transformers_name, original in ORIGINAL.items():
        name = name.replace(transformers_name, original)
    return name


@pytest.mark.parametrize("size", SIZES)
def test_both_namings_give_the_same_parameters(size: str):
    model = build(size)
    config, params = convert(model)
    tied = tables.IGNORED["diffusers"]
    original = {to_original(name): x for name, x in model.state_dict().items() if name not in tied}
    again = convert_tensors(config, original, "original", jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, params, again)


@pytest.mark.parametrize("size", SIZES)
def test_configuration_from_shapes_and_from_json(size: str):
    model = build(size)
    config = UMT5Config.from_dict(model.config.to_dict())
    assert UMT5Config.from_dict(config.to_dict()) == config
    assert ReferenceConfig(**config.to_dict()).to_dict() == model.config.to_dict() | {
        "architectures": ["UMT5EncoderModel"]
    }
    diffusers = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    original = {to_original(name): shape for name, shape in diffusers.items()}
    # What a tensor cannot tell.
    told = dataclasses.replace(config, max_distance=128, eps=1e-6)
    assert tables.infer_config(diffusers, "diffusers") == told
    assert tables.infer_config(original, "original") == told
