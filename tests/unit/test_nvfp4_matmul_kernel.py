"""NVFP4 products: what the kernels do with bits, against a table; refusals; lowering."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.kernels import nvfp4_matmul as benchmark
from pallas_kernels.nvfp4_matmul import (
    FusedConfig,
    expand_sm90,
    expand_to_bf16,
    expand_to_int8,
    kernel_sm100,
    nvfp4_matmul,
    w4a4_matmul,
)
from pallas_kernels.nvfp4_matmul.config import MOST_TOKENS, choose_config
from pallas_kernels.nvfp4_matmul.emulation import decoded, interleave

VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def random_weight(rng, n, k):
    """Packed codes, scales over e4m3's normal range, and the values by a table."""
    codes = rng.integers(0, 16, (n, k))
    scales = jnp.asarray(2.0 ** rng.uniform(-6, 8.7, (n, k // 16)), jnp.float8_e4m3fn)
    packed = jnp.asarray(codes[:, ::2] | codes[:, 1::2] << 4, jnp.uint8)
    return packed, scales, VALUES[codes] * np.repeat(np.asarray(scales, np.float64), 16, axis=1)


def test_decoding_in_registers_is_exact_in_the_order_of_interleave(rng):
    """Every code under every kind of scale: the pair trick, the raised exponent and the order of columns."""
    packed, scales, values = random_weight(rng, 64, 512)
    ordered = np.asarray(interleave(jnp.asarray(values, jnp.float32)), np.float64)
    np.testing.assert_array_equal(np.asarray(decoded(packed, scales), np.float64) * 128, ordered)


def test_interleave_is_a_permutation_within_256():
    order = np.asarray(interleave(jnp.arange(512, dtype=jnp.float32)[None]))[0].astype(int)
    assert sorted(order[:256]) == list(range(256))
    assert sorted(order[256:]) == list(range(256, 512))


def test_each_thread_of_an_operand_decodes_one_block(rng):
    """What makes it work without moving data: lane c of four holds columns 2c, 2c + 1 of every 8, for 64 columns."""
    order = np.asarray(interleave(jnp.arange(256, dtype=jnp.float32)[None]))[0].astype(int)
    for step in order.reshape(4, 8, 4, 2):
        for lane in range(4):
            assert len({column // 16 for column in step[:, lane].flat}) == 1


def test_look_up_tables_hold_rounded_values():
    """The byte permutations of `expand_sm90`, with integers in place of instructions."""
    factor = 21.0  # the row's largest block: 6 · 21 = 126
    rounded = [0, *(round(factor * magnitude) for magnitude in expand_sm90.MAGNITUDES)]
    table = [_word([sign * q for q in rounded[i : i + 4]]) for sign in (1, -1) for i in (0, 4)]
    for quad in np.arange(16).reshape(4, 4):
        halfword = sum(int(code) << 4 * i for i, code in enumerate(quad))
        expected = [round(factor * VALUES[code]) for code in quad]
        assert _signed_bytes(_quad(table, halfword)) == expected


def _word(values):
    return sum((value & 0xFF) << 8 * i for i, value in enumerate(values))


def _permute(low, high, selector):
    data = low | high << 32
    return sum((data >> 8 * (selector >> 4 * i & 7) & 0xFF) << 8 * i for i in range(4))


def _quad(table, codes):
    magnitude = codes & 0x7777
    positive, negative = _permute(*table[:2], magnitude), _permute(*table[2:], magnitude)
    signs = _permute(0xFF00, 0, codes >> 3 & 0x1111)
    return negative & signs | positive & ~signs


def _signed_bytes(word):
    return np.frombuffer(int(word).to_bytes(4, "little"), np.int8).tolist()


def test_fused_product_is_exact_but_for_f32_sums(rng):
    packed, scales, values = random_weight(rng, 128, 512)
    x = jnp.asarray(rng.normal(size=(5, 512)), jnp.bfloat16)
    tensor_scale, bias = jnp.float32(0.37), jnp.asarray(rng.normal(size=128), jnp.float32)
    y = nvfp4_matmul(x, packed, scales, tensor_scale, bias=bias, out_dtype=jnp.float32)
    expected = np.asarray(x, np.float64) @ values.T * float(tensor_scale) + np.asarray(bias, np.float64)
    # Sums of 512 terms in f32.
    assert np.abs(y - expected).max() <= 512 * 2**-24 * np.abs(expected).max()


def test_expanding_to_bf16_is_exact(rng):
    packed, scales, values = random_weight(rng, 16, 256)
    np.testing.assert_array_equal(np.asarray(expand_to_bf16(packed, scales), np.float64), values)


def test_expanding_to_int8_is_within_half_a_step(rng):
    packed, scales, values = random_weight(rng, 16, 256)
    tensor_scale = jnp.asarray(rng.uniform(0.5, 2, 16), jnp.float32)
    codes, scale = expand_to_int8(packed, scales, tensor_scale)
    np.testing.assert_allclose(scale, np.asarray(scales, np.float32).max(1) * 6 / 127 * tensor_scale, rtol=1e-6)
    step = np.asarray(scale / tensor_scale, np.float64)[:, None]
    assert (np.abs(np.asarray(codes, np.float64) * step - values) <= step * (0.5 + 1e-4)).all()


@pytest.mark.parametrize("m", [3, 300])
def test_w4a4_is_the_product_of_the_dequantized(rng, m):
    x, w = random_weight(rng, m, 256), random_weight(rng, 128, 256)
    rows = jnp.asarray(rng.uniform(0.5, 2, m) * 1e-4, jnp.float32)
    y = w4a4_matmul(x[0], x[1], rows, w[0], w[1], jnp.float32(1e-3), out_dtype=jnp.bfloat16)
    expected = x[2] @ w[2].T * np.asarray(rows, np.float64)[:, None] * 1e-3
    # bf16's rounding of the result, and f32's of sums whose terms are larger than the result.
    sums = np.abs(x[2]) @ np.abs(w[2]).T * np.asarray(rows, np.float64)[:, None] * 1e-3
    assert (np.abs(np.asarray(y, np.float64) - expected) <= 2**-8 * np.abs(expected) + 2**-20 * sums).all()


@pytest.mark.parametrize("case", [c for c in benchmark.cases() if c.what != "expand to bf16"], ids=str)
def test_lowers_for_cuda_at_every_benchmark_shape(case):
    shape = jax.ShapeDtypeStruct
    weight = (
        shape((case.n, case.k // 2), jnp.uint8),
        shape((case.n, case.k // 16), jnp.float8_e4m3fn),
        shape((), jnp.float32),
    )
    if case.what == "fused":
        config = choose_config(case.m, case.k, case.n, "NVIDIA H200")
        function = functools.partial(nvfp4_matmul, config=config)
        avals = (shape((case.m, case.k), jnp.bfloat16), *weight)
    else:
        function, avals = expand_to_int8, weight
    assert "mosaic_gpu" in jax.jit(function).trace(*avals).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("out_dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("m", [1, 17, 33, 49, 65, 129, MOST_TOKENS])
def test_any_number_of_tokens_lowers_by_rule(m, out_dtype):
    shape, (k, n) = jax.ShapeDtypeStruct, (5120, 13824)
    weight = shape((n, k // 2), jnp.uint8), shape((n, k // 16), jnp.float8_e4m3fn), shape((), jnp.float32)
    function = functools.partial(nvfp4_matmul, config=choose_config(m, k, n, "another GPU"), out_dtype=out_dtype)
    traced = jax.jit(function).trace(shape((m, k), jnp.bfloat16), *weight)
    assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("m", [8, 64, 16, 32])
def test_every_candidate_lowers(m):
    case, shape = benchmark.Case("fused", m, 5120, 13824), jax.ShapeDtypeStruct
    weight = shape((case.n, case.k // 2), jnp.uint8), shape((case.n, case.k // 16), jnp.float8_e4m3fn)
    configs = benchmark.candidates(case)
    assert {config.inside for config in configs} == {True, False}
    for config in configs:
        traced = jax.jit(functools.partial(nvfp4_matmul, config=config)).trace(
            shape((m, case.k), jnp.bfloat16), *weight, shape((), jnp.float32), bias=shape((case.n,), jnp.float32)
        )
        assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("groups", [1, 2])
def test_products_of_warps_differ_in_their_sums_only(rng, groups):
    """Half a span at the end of K, and rows that are no multiple of a CTA's."""
    packed, scales, values = random_weight(rng, 128, 1280)
    x, bias = jnp.asarray(rng.normal(size=(5, 1280)), jnp.bfloat16), jnp.asarray(rng.normal(size=128), jnp.float32)
    config = FusedConfig(stages=2, groups=groups, tiles=3)
    y = nvfp4_matmul(x, packed, scales, jnp.float32(0.37), bias=bias, config=config, out_dtype=jnp.float32)
    expected = np.asarray(x, np.float64) @ values.T * float(np.float32(0.37)) + np.asarray(bias, np.float64)
    assert np.abs(y - expected).max() <= 1280 * 2**-24 * np.abs(expected).max()


@pytest.mark.parametrize(("m", "k", "n"), [(1, 5120, 13824), (32, 13824, 5120), (8, 256, 128), (17, 1536, 8960)])
def test_products_of_warps_are_the_rule_for_few_tokens(m, k, n):
    config = choose_config(m, k, n, "another GPU")
    assert config.tiles
    shape = jax.ShapeDtypeStruct
    weight = shape((n, k // 2), jnp.uint8), shape((n, k // 16), jnp.float8_e4m3fn), shape((n,), jnp.float32)
    for early in (False, True):
        function = functools.partial(nvfp4_matmul, config=dataclasses.replace(config, early=early))
        traced = jax.jit(function).trace(shape((m, k), jnp.bfloat16), *weight, bias=shape((n,), jnp.float32))
        assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_finishing_inside_changes_only_where(rng):
    packed, scales, _ = random_weight(rng, 128, 512)
    x, bias = jnp.asarray(rng.normal(size=(5, 512)), jnp.bfloat16), jnp.asarray(rng.normal(size=128), jnp.float32)
    inside, outside = (
        nvfp4_matmul(x, packed, scales, jnp.float32(0.37), bias=bias, config=FusedConfig(inside=inside))
        for inside in (True, False)
    )
    np.testing.assert_array_equal(np.asarray(inside, np.float32), np.asarray(outside, np.float32))


class Blackwell:
    """As much of a device as lowering asks for."""

    platform, device_kind, compute_capability, core_count = "gpu", "NVIDIA B200", "10.0", 148


def test_blackwell_kernel_lowers(monkeypatch):
    """All that is known of it: nobody has run it."""
    monkeypatch.setattr("jax.extend.backend.get_default_device", Blackwell)
    shape = jax.ShapeDtypeStruct
    sides = [(shape((rows, 2560), jnp.uint8), shape((rows, 320), jnp.float8_e4m3fn)) for rows in (32760, 13824)]
    lowered = jax.jit(kernel_sm100.run).trace(*sides[0], *sides[1]).lower(lowering_platforms=("cuda",))
    assert "mosaic_gpu" in lowered.as_text()


def test_blackwell_scales_are_where_the_hardware_reads_them():
    scale = jnp.arange(200 * 8, dtype=jnp.float32).reshape(200, 8)
    squares = np.asarray(kernel_sm100.swizzled_scales(scale))
    assert squares.shape == (2, 2, 32, 16)
    for row, block in ((0, 0), (45, 3), (127, 7), (128, 4), (199, 5)):
        tile, inside = divmod(row, 128)
        quarter, line = divmod(inside, 32)
        assert squares[tile, block // 4, line, 4 * quarter + block % 4] == scale[row, block]


def good(**changes):
    defaults = dict(
        x=jnp.ones((2, 256), jnp.bfloat16),
        packed=jnp.zeros((128, 128), jnp.uint8),
        block_scale=jnp.ones((128, 16), jnp.float8_e4m3fn),
        tensor_scale=jnp.float32(1.0),
    )
    return defaults | changes


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(x=jnp.ones((2, 256))), "x is float32"),
        (dict(x=jnp.ones((0, 256), jnp.bfloat16)), "x has no rows"),
        (dict(x=jnp.ones((209, 256), jnp.bfloat16)), "x has 209 rows"),
        (dict(packed=jnp.zeros((128, 128), jnp.int8)), "packed is int8"),
        (dict(packed=jnp.zeros((100, 128), jnp.uint8), block_scale=jnp.ones((100, 16), jnp.float8_e4m3fn)), "n = 100"),
        (dict(x=jnp.ones((2, 128), jnp.bfloat16)), "k = 128"),
        (dict(block_scale=jnp.ones((128, 8), jnp.float8_e4m3fn)), "block_scale has shape"),
        (dict(block_scale=jnp.ones((128, 16))), "block_scale is float32"),
        (dict(block_scale=jnp.full((128, 16), jnp.nan, jnp.float8_e4m3fn)), "block_scale holds"),
        (dict(tensor_scale=jnp.ones(3)), "tensor_scale has shape"),
        (dict(tensor_scale=jnp.float32(jnp.nan)), "tensor_scale holds"),
        (dict(bias=jnp.ones(3)), "bias has shape"),
        (dict(config=FusedConfig(parts=3)), "config.parts = 3"),
        (
            dict(
                x=jnp.ones((2, 512), jnp.bfloat16),
                packed=jnp.zeros((128, 256), jnp.uint8),
                block_scale=jnp.ones((128, 32), jnp.float8_e4m3fn),
                config=FusedConfig(2, inside=True),
            ),
            "parts = 2",
        ),
        (dict(config=FusedConfig(cluster=2)), "config.cluster = 2"),
        (dict(config=FusedConfig(groups=2)), "config.groups = 2"),  # one chunk, hence one stage
        (dict(config=FusedConfig(groups=2, tiles=7)), "config.groups = 2"),
        (dict(config=FusedConfig(parts=2, tiles=7)), "config.tiles = 7"),
        (dict(config=FusedConfig(stages=8, tiles=7)), "bytes of shared memory"),
        (dict(config=FusedConfig(stages=6, tiles=7, staged=True)), "bytes of shared memory"),
        (dict(config=FusedConfig(cluster=2, tiles=7, staged=True)), "config.cluster = 2"),
        (dict(config=FusedConfig(cluster=2, tiles=7)), "cluster 1 unless staged"),
        (dict(config=FusedConfig(ahead=-1, tiles=7)), "config.ahead = -1"),
        (dict(x=jnp.ones((33, 256), jnp.bfloat16), config=FusedConfig(tiles=7)), "config.tiles = 7 for 33 tokens"),
    ],
)
def test_bad_arguments_are_named(changes, named):
    with pytest.raises((TypeError, ValueError), match=named):
        nvfp4_matmul(**good(**changes))
