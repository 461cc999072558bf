"""Laws of the number formats, for any data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sixbit_jax.formats import (
    decode_e2m1,
    dequantize,
    encode_e2m1,
    hadamard,
    pack_nibbles,
    quantize_int8,
    quantize_nvfp4,
    to_int8,
    unpack_nibbles,
)

# One shape, so that every example runs the same compiled program.
ROWS, K = 3, 64
# Magnitudes a tensor may hold; smaller ones count as zero, f32 ends at 3.4e38.
magnitudes = st.floats(2.0**-60, 2.0**60, width=32)
values = st.just(0.0) | magnitudes | magnitudes.map(lambda x: -x)
matrices = arrays.arrays(np.float32, (ROWS, K), elements=values)


@st.composite
def gaussians(draw):
    """Rows of different size with a few outliers: what weights and activations look like."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal((ROWS, K)) * 10.0 ** rng.uniform(-1, 1, (ROWS, 1)) * 10.0 ** draw(st.integers(-6, 4))
    x[rng.random(x.shape) < 0.02] *= draw(st.sampled_from([1, 10]))
    return np.float32(x)


data = gaussians() | matrices
few = settings(deadline=None, max_examples=60)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def int8_bound(x) -> np.ndarray:
    """Half a step of each row; a code near 127 carries a few roundings of 2⁻²⁴, which can tip a near tie."""
    return np.abs(x).max(axis=1, keepdims=True).astype(np.float64) / 254 * (1 + 8 * 127 * 2.0**-24)


def normal_blocks(t) -> np.ndarray:
    """Blocks whose scale was not clamped from below."""
    return np.asarray(t.block_scale, np.float32) > 2.0**-6


@few
@given(gaussians())
def test_quantizing_again_changes_nothing_where_scales_are_normal(x):
    """The largest value of a block is 6 times its scale again: unless rounding to e4m3 made it a value below 6."""
    once = quantize_nvfp4(jnp.asarray(x))
    twice = quantize_nvfp4(dequantize(once), tensor_scale=once.tensor_scale)
    codes = np.asarray(unpack_nibbles(once.packed)).reshape(ROWS, -1, 16)
    at_six = (codes & 7).max(axis=-1) == 7
    stable = normal_blocks(once) & at_six
    assert stable.any()
    np.testing.assert_array_equal(np.asarray(twice.block_scale)[stable], np.asarray(once.block_scale)[stable])
    again = np.asarray(unpack_nibbles(twice.packed)).reshape(codes.shape)
    np.testing.assert_array_equal(again[stable], codes[stable])


@few
@given(gaussians(), st.integers(-30, 30))
def test_powers_of_two_move_only_the_tensor_scale(x, power):
    t, scaled = quantize_nvfp4(jnp.asarray(x)), quantize_nvfp4(jnp.asarray(np.ldexp(x, power)))
    equal(scaled.packed, t.packed)
    equal(scaled.block_scale, t.block_scale)
    assert scaled.tensor_scale == np.ldexp(np.float32(t.tensor_scale), power)


@few
@given(data)
def test_negation_flips_the_sign_bits_and_nothing_else(x):
    t, negated = quantize_nvfp4(jnp.asarray(x)), quantize_nvfp4(-jnp.asarray(x))
    equal(negated.packed, t.packed ^ 0x88)
    equal((negated.block_scale, negated.tensor_scale), (t.block_scale, t.tensor_scale))
    equal(quantize_int8(-jnp.asarray(x)).data, -quantize_int8(jnp.asarray(x)).data)


@few
@given(data, st.integers(0, ROWS - 1), st.integers(0, K // 16 - 1))
def test_zero_blocks_are_zero_and_do_not_touch_the_rest(x, row, block):
    x[row, 16 * block : 16 * block + 16] = 0
    t = quantize_nvfp4(jnp.asarray(x))
    assert not dequantize(t)[row, 16 * block : 16 * block + 16].any()
    assert np.isfinite(np.asarray(t.block_scale, np.float32)).all()
    assert jnp.isfinite(dequantize(t)).all()


@few
@given(data, st.permutations(range(ROWS)))
def test_rows_may_be_permuted(x, order):
    order = np.array(order)
    for quantize in (quantize_nvfp4, quantize_int8):
        permuted = dequantize(quantize(jnp.asarray(x[order])))
        equal(permuted, dequantize(quantize(jnp.asarray(x)))[order])


@few
@given(data, st.integers(1, 15))
def test_padding_leaves_the_other_blocks_alone(x, missing):
    short = x[:, : K - missing]
    x[:, K - missing :] = 0
    equal(quantize_nvfp4(jnp.asarray(short), pad=True), quantize_nvfp4(jnp.asarray(x)))


@few
@given(data)
def test_vmap_is_a_loop(x):
    """Row by row, each with its own tensor scale."""
    mapped = jax.vmap(quantize_nvfp4)(jnp.asarray(x))
    equal(mapped, jax.tree.map(lambda *leaves: jnp.stack(leaves), *[quantize_nvfp4(jnp.asarray(row)) for row in x]))


@few
@given(data)
def test_the_error_is_within_half_a_step(x):
    """Neighbouring E2M1 values are at most 2 apart, and e4m3 rounds a scale by at most 1/16."""
    t = quantize_nvfp4(jnp.asarray(x))
    amax = np.abs(x).reshape(ROWS, -1, 16).max(axis=-1, keepdims=True).astype(np.float64)
    error = np.abs(np.asarray(dequantize(t), np.float64) - x).reshape(ROWS, -1, 16)
    # A block below the smallest scale is resolved no finer than that scale: half of 0.5 × 2⁻⁶.
    floor = 0.25 * 2.0**-6 * float(t.tensor_scale)
    assert (error <= np.maximum(amax / 6 * (1 + 1 / 16), floor) * (1 + 1e-5)).all()
    rows = np.abs(np.asarray(dequantize(quantize_int8(jnp.asarray(x))), np.float64) - x)
    assert (rows <= int8_bound(x)).all()


@few
@given(arrays.arrays(np.uint8, (ROWS, K), elements=st.integers(0, 15)))
def test_packing_and_codes_are_reversible(codes):
    equal(unpack_nibbles(pack_nibbles(jnp.asarray(codes))), codes)
    equal(encode_e2m1(decode_e2m1(jnp.asarray(codes))), codes)


@few
@given(gaussians())
def test_expansion_to_int8_is_within_half_a_step_of_its_row(x):
    t = quantize_nvfp4(jnp.asarray(x))
    w, w8 = (np.asarray(dequantize(q), np.float64) for q in (t, to_int8(t)))
    assert (np.abs(w8 - w) <= int8_bound(w)).all()


@pytest.mark.parametrize("block", [16, 64])
@few
@given(x=gaussians())
def test_the_rotation_keeps_lengths_and_undoes_itself(block, x):
    y = hadamard(jnp.asarray(x), block)
    size = np.linalg.norm(x.astype(np.float64))
    # A few roundings of f32 for each of the 64 values.
    np.testing.assert_allclose(np.linalg.norm(np.asarray(y, np.float64)), size, rtol=1e-6)
    np.testing.assert_allclose(hadamard(y, block), x, rtol=0, atol=1e-6 * size)
    np.testing.assert_allclose(hadamard(jnp.asarray(x), block, implementation="fast"), y, rtol=0, atol=1e-6 * size)
