"""The UMT5 encoder without a reference: what padding may change, dtypes, configuration, tables."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters import umt5 as tables
from sixbit_jax.errors import UserError
from sixbit_jax.models import umt5
from sixbit_jax.models.umt5 import UMT5_XXL, UMT5Config
from sixbit_jax.shapes import Params, tree_path

CONFIG = UMT5Config(vocab_size=31, d_model=24, num_layers=2, num_heads=3, ffn_dim=40, head_dim=8)
EPS = np.finfo(np.float32).eps


@functools.cache
def init_params(dtype: jnp.dtype) -> Params:
    return umt5.init_params(CONFIG, jax.random.key(0), dtype)


def encode(tokens: int, length: int, filler: int = 0, dtype: jnp.dtype = jnp.float32) -> np.ndarray:
    """The output for the ids 1 … `length`, padded with `filler` to `tokens`."""
    params = init_params(dtype)
    ids = jnp.full((1, tokens), filler).at[0, :length].set(jnp.arange(1, length + 1))
    mask = (jnp.arange(tokens)[None] < length).astype(jnp.int32)
    return np.asarray(jax.jit(umt5.encode, static_argnums=1)(params, CONFIG, ids, mask))


def test_padding_does_not_change_the_tokens():
    alone = encode(9, 9)
    # Sums over 9 or 20 keys are grouped differently: a few roundings per layer.
    tolerance = 32 * EPS * np.abs(alone).max()
    np.testing.assert_allclose(encode(20, 9)[:, :9], alone, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(encode(20, 9, filler=0)[:, :9], encode(20, 9, filler=30)[:, :9])


def test_a_token_changes_every_other():
    """The control of the test above: without the mask the filler would be seen."""
    assert np.all(np.any(encode(20, 10)[:, :9] != encode(20, 9)[:, :9], axis=-1))


def test_a_prompt_without_tokens_is_finite():
    assert np.isfinite(encode(4, 0)).all()


def test_bf16_weights_give_f32_output_close_to_f32():
    exact, rounded = encode(9, 9), encode(9, 9, dtype=jnp.bfloat16)
    assert rounded.dtype == np.float32
    # 2^-9 per rounding of weights and activations, a dozen of them in a row over two layers.
    assert 0 < np.abs(exact - rounded).max() <= 12 * 2**-9 * np.abs(exact).max()


def test_norms_and_position_biases_stay_f32():
    leaves = jax.tree_util.tree_leaves_with_path(umt5.abstract_params(CONFIG, jnp.bfloat16))
    f32 = {tree_path(path) for path, leaf in leaves if leaf.dtype == jnp.float32}
    assert f32 == {
        "norm/scale",
        "blocks/attention_norm/scale",
        "blocks/ffn_norm/scale",
        "blocks/attention/position_bias",
    }


def test_xxl_has_the_published_size():
    sizes = [leaf.size for leaf in jax.tree.leaves(umt5.abstract_params(UMT5_XXL))]
    assert round(sum(sizes) / 1e9, 2) == 5.68


def test_buckets_of_neighbours_and_far_keys():
    buckets = umt5.position_buckets(UMT5_XXL, 300)
    assert buckets[0, :9].tolist() == [0, 17, 18, 19, 20, 21, 22, 23, 24]
    assert buckets[8, :9].tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert buckets[0, [11, 12, 16, 32, 64, 91, 128, 299]].tolist() == [24, 25, 26, 28, 30, 31, 31, 31]
    assert buckets[299, 0] == 15


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "t5"}, "model_type='t5' is not supported"),
        ({"feed_forward_proj": "relu"}, "feed_forward_proj='relu' is not supported"),
        ({"d_ff": None}, '"d_ff" is missing'),
    ],
)
def test_unsupported_configurations_are_refused(change: dict, message: str):
    data = {key: value for key, value in (CONFIG.to_dict() | change).items() if value is not None}
    with pytest.raises(UserError, match=message):
        UMT5Config.from_dict(data)


def test_configuration_survives_a_round_trip():
    assert UMT5Config.from_dict(CONFIG.to_dict() | {"dropout_rate": 0.1}) == CONFIG


@pytest.mark.parametrize("naming", tables.NAMINGS)
def test_table_fills_every_parameter_once(naming: str):
    table = tables.rules(CONFIG, naming)
    sources = [rule.source for rule in table]
    slots = [(rule.target, rule.layer, rule.part[0]) for rule in table]
    assert len(set(sources)) == len(sources)
    assert len(set(slots)) == len(slots)
    paths = {tree_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(umt5.abstract_params(CONFIG))}
    assert {rule.target for rule in table} == paths
    assert tables.MARKERS[naming] in sources


def test_markers_tell_the_namings_apart():
    for naming, marker in tables.MARKERS.items():
        others = [rule.source for other in tables.NAMINGS if other != naming for rule in tables.rules(CONFIG, other)]
        assert marker not in others


def test_missing_tensor_is_named():
    with pytest.raises(UserError, match=r'"encoder\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias'):
        tables.infer_config({"shared.weight": (31, 24)}, "diffusers")
