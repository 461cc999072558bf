"""Hopper's sums of e4m3 products: what 13 bits keep, and that promoting them in time keeps the rest."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from benchmarks.kernels import attention_int8 as benchmark
from pallas_kernels.attention_int8 import AttentionConfig, Before, emulation, fp8_sums, operands
from pallas_kernels.attention_int8.config import MOST_KEYS


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


@pytest.mark.parametrize(("promote", "least", "most"), [(0, 0.04, 0.09), (4, 0, 0.003), (2, 0, 0.003)])
def test_promoted_sums_lose_little(rng, promote, least, most):
    """Noise over 4,096 keys: the sum of a row's weights, all of one sign, comes out 6 % too small."""
    q, k, v = (rng.standard_normal((tokens, 128)) for tokens in (24, 4096, 4096))
    assert least <= lost(q, k, v, AttentionConfig(promote=promote)) <= most


@pytest.mark.parametrize(("promote", "least", "most"), [(AttentionConfig().promote, 0, 0.013), (16, 0.04, 0.08)])
def test_values_of_one_sign_lose_most(rng, promote, least, most):
    """A video whose queries see a part of it, and whose values change slowly: long sums that only grow."""
    tokens, when = 16384, rng.uniform(0, 1, 12)
    q, k, v = (rng.standard_normal((n, 128)) for n in (12, tokens, tokens))
    time = np.arange(tokens) / tokens
    circle = lambda t: 5 * np.stack([np.cos(2 * np.pi * t), np.sin(2 * np.pi * t)], axis=1)
    q[:, :2], k[:, :2] = circle(when), circle(time)
    v = 0.5 * v + 2 * np.sin(2 * np.pi * (time[:, None] * rng.uniform(0.5, 4, 128) + rng.uniform(0, 1, 128)))
    assert least <= lost(q, k, v, AttentionConfig(promote=promote)) <= most


def lost(q, k, v, config):
    """How far sums of 13 bits are from exact ones."""
    q, k, v = (jnp.asarray(x, jnp.bfloat16)[None, :, None] for x in (q, k, v))
    quantize = functools.partial(operands.quantize, valid_keys=k.shape[1], pv="e4m3", config=config)
    x = jax.jit(quantize)(q, k, v, Before())
    static = dict(heads=1, queries=q.shape[1], valid_keys=k.shape[1], config=config, with_lse=False)
    run = lambda truncates: jax.jit(functools.partial(emulation.run, truncates=truncates, **static))(x)[0]
    whole, cut = (np.asarray(run(truncates), np.float64) for truncates in (False, True))
    return np.linalg.norm(cut - whole) / np.linalg.norm(whole)


def test_no_configuration_of_ours_sums_too_many_keys():
    cases = [case for case in benchmark.tuned_cases() if case.variant == "int8"]
    configs = [config for case in cases for config in benchmark.candidates(case)] + [AttentionConfig()]
    assert all(0 < config.promote * config.block_kv <= MOST_KEYS for config in configs)
