"""Hopper's sums of e4m3 products: what 13 bits keep, and that promoting them in time keeps the rest."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from pallas_kernels.attention_int8 import AttentionConfig, Before, emulation, fp8_sums, operands


def e4m3(x):
    return np.float32(x).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)


def test_what_fits_into_13_bits_is_exact(rng):
    left, right = (rng.integers(-7, 8, shape).astype(np.float32) for shape in ((2, 5, 64), (2, 64, 3)))
    total = fp8_sums.accumulate(jnp.ones((2, 5, 3)), left, right)
    np.testing.assert_array_equal(total, 1 + left @ right)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_is_small_beside_the_accumulator_vanishes(sign):
    """Below a unit of 2^-13 of the accumulator: 32 products of 1 beside 2^14, but not beside 2^13."""
    one = jnp.ones((1, 1, 32))
    totals = jnp.array([2.0**14, 2.0**13, 0.0])[None, None] * sign
    total = fp8_sums.accumulate(totals, sign * one, jnp.ones((1, 32, 3)))
    np.testing.assert_array_equal(total[0, 0] * sign, [2.0**14, 2.0**13 + 32, 32])


def test_an_instruction_is_what_a_loop_over_its_terms_gives(rng):
    left, right, start = e4m3(rng.standard_normal(32)), e4m3(rng.standard_normal(32)), np.float32(1.75)
    floor_log2 = lambda x: np.frexp(np.abs(x))[1] - 1
    top = max(*(floor_log2(left) + floor_log2(right)), floor_log2(start))
    unit = 2.0 ** (top - 13)
    units = sum(np.trunc(float(a) * float(b) / unit) for a, b in zip(left, right, strict=True))
    total = (units + np.trunc(start / unit)) * unit
    step = 2.0 ** (floor_log2(total) - 13)
    found = fp8_sums.accumulate(jnp.full((1, 1, 1), start), left[None, None], right[None, :, None])
    assert float(found[0, 0, 0]) == np.trunc(total / step) * step


@pytest.mark.parametrize(("promote", "least", "most"), [(0, 0.04, 0.09), (8, 0, 0.003), (2, 0, 0.003)])
def test_promoted_sums_lose_little(rng, promote, least, most):
    """Noise over 4,096 keys: the sum of a row's weights, all of one sign, comes out 6 % too small."""
    config = AttentionConfig(promote=promote)
    q, k, v = (jnp.asarray(rng.standard_normal((1, tokens, 1, 128)), jnp.bfloat16) for tokens in (24, 4096, 4096))
    x = operands.quantize(q, k, v, Before(), valid_keys=4096, pv="e4m3", config=config)
    static = dict(heads=1, queries=24, valid_keys=4096, config=config, with_lse=False)
    run = lambda truncates: jax.jit(functools.partial(emulation.run, truncates=truncates, **static))(x)[0]
    whole, cut = (np.asarray(run(truncates), np.float64) for truncates in (False, True))
    assert least <= np.linalg.norm(cut - whole) / np.linalg.norm(whole) <= most
