"""The outlier twin computes the same function, and its planted channels are loud.

Error model: powers of two commute with every rounding, so sites whose producer is linear or a norm's affine give the
same bits. Modulation is (1 + table + time) in f32: a factor inside changes its rounding, a few 2^-24 of each value,
which two layers turn into some 1e-6 of the output's scale.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from micro_pipeline import random_params

from sixbit_jax.errors import UserError
from sixbit_jax.models import wan, wan_modules
from sixbit_jax.models.wan_config import GROUPS, WanConfig
from sixbit_jax.policies.measures import note_outlier_ratio
from sixbit_jax.tiny.outliers import SITES, Outliers, describe, plant

CONFIG = WanConfig(num_layers=2, num_heads=2, ffn_dim=256, text_dim=16)
EXACT = ("self_out", "cross_q", "cross_out")


@functools.cache
def original(dtype: str = "float32"):
    return random_params(wan_modules.abstract_params(CONFIG, jnp.dtype(dtype)))


@jax.jit
def run(params):
    latents = jax.random.normal(jax.random.key(2), (1, 2, 8, 8, 16))
    text = jax.random.normal(jax.random.key(3), (1, 7, 16))
    context = wan.embed_context(params, CONFIG, text)
    timestep = jnp.array([700.0])
    velocity, _, observed = wan.forward(params, CONFIG, latents, timestep, context, observe=note_outlier_ratio)
    return velocity, observed["inputs"]


def largest_difference(outliers: Outliers) -> float:
    """Relative to the largest velocity."""
    expected, found = run(original())[0], run(plant(original(), CONFIG, outliers))[0]
    return float(jnp.abs(found - expected).max() / jnp.abs(expected).max())


@pytest.mark.parametrize("site", EXACT)
def test_sites_without_modulation_give_the_same_bits(site):
    assert largest_difference(Outliers(sites=(site,))) == 0


def test_all_sites_give_the_same_velocity():
    assert 0 < largest_difference(Outliers()) < 1e-5


def test_the_bound_can_fail():
    """Forget to divide at one reader, and the velocity is another."""
    spoiled = plant(original(), CONFIG, Outliers(sites=("cross_q",)))
    spoiled["blocks"]["cross_attention"]["q"]["weight"] = original()["blocks"]["cross_attention"]["q"]["weight"]
    difference = jnp.abs(run(spoiled)[0] - run(original())[0]).max() / jnp.abs(run(original())[0]).max()
    assert difference > 1e-2


@pytest.mark.parametrize("site", SITES)
def test_planted_inputs_are_loud_and_others_are_as_before(site):
    before = run(original())[1]
    after = run(plant(original(), CONFIG, Outliers(sites=(site,))))[1]
    for group in GROUPS:
        if group == site:
            # Two channels of 256 are 32 times louder; a chosen one may have been quieter than most.
            assert float(after[group].min()) > 25
            assert float((after[group] / before[group]).max()) > 5
        else:
            np.testing.assert_allclose(after[group], before[group], rtol=1e-4)


def test_half_precision_weights_are_scaled_exactly():
    params = original("bfloat16")
    twin = plant(params, CONFIG, Outliers(exponent=6))
    back = plant(params, CONFIG, Outliers(exponent=6, sites=("ffn_in",)))
    for tree in (twin, back):
        assert jax.tree.map(lambda leaf: leaf.dtype, tree) == jax.tree.map(lambda leaf: leaf.dtype, params)
    before = params["blocks"]["ffn_in"]["weight"].astype(np.float64)
    after = back["blocks"]["ffn_in"]["weight"].astype(np.float64)
    scales = Outliers(exponent=6).scales(CONFIG)["ffn_in"]
    np.testing.assert_array_equal(after * scales[:, None], before)


def test_modulated_sites_share_channels_and_others_do_not():
    channels = describe(CONFIG, Outliers(channels=4))["channels_by_site_and_layer"]
    assert channels["self_qkv"][0] == channels["self_qkv"][1]
    assert channels["cross_q"][0] != channels["cross_q"][1]
    assert all(len(layer) == 8 for layers in channels.values() for layer in layers)
    assert describe(CONFIG, Outliers(channels=4, seed=1)) != describe(CONFIG, Outliers(channels=4))


def test_the_original_is_left_alone():
    before = jax.tree.map(np.array, original())
    plant(original(), CONFIG, Outliers())
    jax.tree.map(np.testing.assert_array_equal, before, original())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"sites": ("ffn_out",)}, "--sites.*ffn_out.*did you mean"),
        ({"exponent": 11}, "--exponent 11"),
        ({"channels": 0}, "--channels 0"),
    ],
)
def test_mistakes_are_named(wrong, words):
    with pytest.raises(UserError, match=words):
        Outliers(**wrong)
