"""The kernels on a real GPU, against their emulations: every epilogue, ragged rows, the same result twice."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.kernels import int8_matmul, nvfp4_matmul, quantize_rows
from benchmarks.kernels.measure import relative_error
from pallas_kernels.nvfp4_matmul import FusedConfig, expand_to_int8
from pallas_kernels.nvfp4_matmul import nvfp4_matmul as fused
from pallas_kernels.nvfp4_matmul.codes import scaled_values
from pallas_kernels.nvfp4_matmul.expand import emulate as emulate_expand

pytestmark = pytest.mark.gpu

VARIANTS = ("plain", "gelu", "gated", "grouped")


def noted(record_property, error):
    record_property("error", float(f"{error:.3g}"))
    return error


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("m", [200, 4096 + 8, 1])
def test_int8_matmul(record_property, variant, m):
    case = int8_matmul.Case("", m, 1536, 1536, variant)
    operands = int8_matmul.same_operands(case)
    run = jax.jit(functools.partial(int8_matmul.run_kernel, case))
    first, second = run(*operands), run(*operands)
    # bf16's rounding, and the hardware's approximate tanh.
    assert noted(record_property, int8_matmul.spot_error(case, first)) < 2**-8
    np.testing.assert_array_equal(np.asarray(first, np.float32), np.asarray(second, np.float32))
    assert np.isfinite(np.asarray(first, np.float32)).all()


CANDIDATES = [
    (variant, config)
    for variant in ("gelu", "gated", "grouped")
    for config in int8_matmul.candidates(int8_matmul.Case("", 32760, 5120, 5120, variant))
]


@pytest.mark.parametrize(("variant", "config"), CANDIDATES, ids=str)
def test_int8_matmul_candidates(record_property, variant, config):
    """Ragged rows, and columns that no width of a tile but 128 divides."""
    case = int8_matmul.Case("", 1003, 640, 1280, variant)
    operands = int8_matmul.same_operands(case)
    result = jax.jit(functools.partial(int8_matmul.run_kernel, case, config=config))(*operands)
    assert noted(record_property, int8_matmul.spot_error(case, result)) < 2**-8


def assert_same_codes(record_property, case, operands, result):
    """Sums in another order, hence the middle between two codes may fall either way."""
    differing = noted(record_property, quantize_rows.differing_codes(case, operands, result, rows=case.m))
    assert differing <= quantize_rows.most_differing(case)


@pytest.mark.parametrize("variant", quantize_rows.VARIANTS)
@pytest.mark.parametrize("k", [1536, 5120, 8960, 13824])
def test_quantize_rows(record_property, variant, k):
    case = quantize_rows.Case("", 1003, k, variant)
    operands = quantize_rows.same_operands(case)
    result = jax.jit(functools.partial(quantize_rows.run_kernel, case))(*operands)
    assert_same_codes(record_property, case, operands, result)


@pytest.mark.parametrize(
    ("k", "variant"),
    [
        *[(k, variant) for k in (384, 768, 3072, 14336) for variant in ("plain", "rotated")],
        # Shared by four warps, in parts that differ.
        *[(k, variant) for k in (5760, 9600) for variant in quantize_rows.VARIANTS],
        *[(14336, variant) for variant in ("grouped", "gelu", "nvfp4")],
        *[(13824, variant) for variant in ("modulated", "modulated rotated", "modulated nvfp4")],
        *[(k, "rotated") for k in (18816, 28416)],
        *[(18432, variant) for variant in ("modulated", "modulated rotated", "modulated nvfp4")],
    ],
)
def test_quantize_rows_of_other_widths(record_property, variant, k):
    case = quantize_rows.Case("", 1003, k, variant)
    operands = quantize_rows.same_operands(case)
    result = jax.jit(functools.partial(quantize_rows.run_kernel, case))(*operands)
    assert_same_codes(record_property, case, operands, result)


@pytest.mark.parametrize("variant", [variant for variant in quantize_rows.VARIANTS if variant != "gelu"])
@pytest.mark.parametrize("k", [128, 256, 384])
@pytest.mark.parametrize("ahead", [1, 3])
def test_quantize_rows_that_are_narrow(record_property, variant, k, ahead):
    """Most lanes have no group, and a round is over before the next row has come."""
    case = quantize_rows.Case("", 9001, k, variant)
    operands = quantize_rows.same_operands(case)
    config = quantize_rows.QuantizeRowsConfig(1, warpgroups=4, warps=1, ahead=ahead)
    result = jax.jit(functools.partial(quantize_rows.run_kernel, case, config=config))(*operands)
    assert_same_codes(record_property, case, operands, result)


# Of so few rows none are left to late CTAs, which have a test of their own.
IN_REGISTERS = [
    (case.variant, case.k, config)
    for case in quantize_rows.cases()
    if case.m == 32760
    for config in quantize_rows.in_registers(case)
    if not config.late
]


def poison(results):
    """Leave codes and values that no kernel makes where the next results of these shapes will lie."""
    filled = [jnp.full(part.shape, -128 if part.dtype == jnp.int8 else 77, part.dtype) for part in results]
    for part in jax.block_until_ready(filled):
        part.delete()


@pytest.mark.parametrize(("variant", "k", "config"), IN_REGISTERS, ids=str)
def test_quantize_rows_in_registers(record_property, variant, k, config):
    case = quantize_rows.Case("", 1003, k, variant)
    operands = quantize_rows.same_operands(case)
    run = jax.jit(functools.partial(quantize_rows.run_kernel, case, config=config))
    poison([part for part in run(*operands) if part is not None])
    first, second = run(*operands), run(*operands)
    assert_same_codes(record_property, case, operands, first)
    assert_same_bits(first, second)


def assert_same_bits(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(*(np.asarray(x).view(np.uint8) if x is not None else 0 for x in (a, b)))


@pytest.mark.parametrize("variant", [variant for variant in quantize_rows.VARIANTS if variant != "gelu"])
@pytest.mark.parametrize(("k", "rows", "more"), [(1536, 2, 4), (5120, 1, 2)])
def test_neither_crossed_lanes_nor_rows_that_share_factors_change_a_bit(variant, k, rows, more):
    """Against rows that read their own, again from shared memory, in lanes that meet there."""
    case = quantize_rows.Case("", 1003, k, variant)
    operands = quantize_rows.same_operands(case)
    config = quantize_rows.QuantizeRowsConfig(rows, warpgroups=1, warps=1, ahead=1, keep=False)
    run = lambda **changes: jax.jit(
        functools.partial(quantize_rows.run_kernel, case, config=dataclasses.replace(config, **changes))
    )(*operands)
    expected = run()
    poison([part for part in expected if part is not None])
    for changes in (dict(crossed=True), dict(keep=True, crossed=True), dict(rows=more), dict(rows=more, crossed=True)):
        assert_same_bits(run(**changes), expected)


@pytest.mark.parametrize(("late", "stretch"), [(1, 1), (3, 1), (4, 2), (9, 4)])
@pytest.mark.parametrize("shares", [dict(rows=1, warps=1), dict(rows=2, warps=1), dict(rows=1, warps=4)], ids=str)
@pytest.mark.parametrize("variant", [variant for variant in quantize_rows.VARIANTS if variant != "gelu"])
def test_rows_left_to_late_ctas_are_quantized_alike(variant, shares, late, stretch):
    """So many that there are rounds to leave; every bit as without, and what no kernel makes is overwritten."""
    case = quantize_rows.Case("", 15001, 1536 if shares["warps"] == 1 else 3456, variant)
    operands = quantize_rows.same_operands(case)
    config = quantize_rows.QuantizeRowsConfig(warpgroups=2, ahead=1, **shares)
    run = lambda config: jax.jit(functools.partial(quantize_rows.run_kernel, case, config=config))(*operands)
    expected = run(config)
    poison([part for part in expected if part is not None])
    assert_same_bits(run(dataclasses.replace(config, late=late, stretch=stretch)), expected)


def nvfp4_weights(case):
    """Of a benchmark's many the first, and only that one is computed."""
    return jax.jit(lambda: nvfp4_matmul.random_weights(case)[0])()


def leave_nan(shape):
    """Memory of this size, freed, holds NaN: what a kernel leaves out shows."""
    jax.block_until_ready(jnp.full(shape, jnp.nan, jnp.bfloat16))


@functools.cache
def nvfp4_products(m):
    """Activations, packed weights and their scales, and the product in f64."""
    case = nvfp4_matmul.Case("fused", m, 1536, 8960)
    packed, scale = nvfp4_weights(case)
    x = jax.random.normal(jax.random.key(1), (m, case.k), jnp.bfloat16)
    weights = np.asarray(jax.jit(scaled_values)(packed, scale), np.float64)
    return case, x, packed, scale, np.asarray(x, np.float64) @ weights.T * 1e-3


@pytest.mark.parametrize("m", [8, 200, 1, 33, 64, 16, 32])
def test_fused_nvfp4(record_property, m):
    _, x, packed, scale, expected = nvfp4_products(m)
    actual = jax.jit(fused)(x, packed, scale, jnp.float32(1e-3))
    assert noted(record_property, relative_error(actual.astype(jnp.float32), expected)) < 2**-8


@pytest.mark.parametrize("m", [8, 64, 16, 32, 1])
def test_fused_nvfp4_candidates(record_property, m):
    case, x, packed, scale, expected = nvfp4_products(m)
    bias = jax.random.normal(jax.random.key(2), (case.n,))
    errors = {}
    for config in nvfp4_matmul.candidates(case):
        leave_nan((m, case.n))
        actual = jax.jit(functools.partial(fused, config=config))(x, packed, scale, jnp.float32(1e-3), bias=bias)
        errors[str(config)] = relative_error(actual.astype(jnp.float32), expected + np.asarray(bias))
    assert noted(record_property, max(errors.values())) < 2**-8, errors


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("tiles", [1, 3, 7, 8])
@pytest.mark.parametrize("m", [1, 5, 16])
def test_fused_nvfp4_by_warps(record_property, m, tiles, groups, early, staged):
    """Rows that are no multiple of a CTA's, half a span at the end of K, a scale a row; twice, the first after NaN."""
    k, n = 1280, 128 * 9
    packed, scale = nvfp4_weights(nvfp4_matmul.Case("fused", m, k, n))
    keys = jax.random.split(jax.random.key(3), 3)
    x = jax.random.normal(keys[0], (m, k), jnp.bfloat16)
    scales, bias = jax.random.uniform(keys[1], (n,)), jax.random.normal(keys[2], (n,))
    config = FusedConfig(stages=2, groups=groups, tiles=tiles, early=early, staged=staged)
    run = jax.jit(functools.partial(fused, config=config))
    leave_nan((m, n))
    first, second = (np.asarray(run(x, packed, scale, scales, bias=bias), np.float32) for _ in range(2))
    expected = np.asarray(x, np.float64) @ np.asarray(scaled_values(packed, scale), np.float64).T
    assert noted(record_property, relative_error(first, expected * np.asarray(scales) + np.asarray(bias))) < 2**-8
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    "changes", [dict(), dict(staged=True), dict(ahead=1), dict(staged=True, cluster=2, ahead=1)], ids=str
)
def test_fused_nvfp4_in_a_row(changes):
    """Begun early, each product reads what the one before wrote."""
    k = 1280
    packed, scale = nvfp4_weights(nvfp4_matmul.Case("fused", 16, k, k))
    x = jax.random.normal(jax.random.key(4), (16, k), jnp.bfloat16)

    def chain(x, early):
        config = FusedConfig(stages=2, groups=2, tiles=1, early=early, **changes)
        for _ in range(8):
            x = fused(x, packed, scale, jnp.float32(0.01), config=config)
        return x

    late, early = (jax.jit(functools.partial(chain, early=early))(x) for early in (False, True))
    np.testing.assert_array_equal(np.asarray(early, np.float32), np.asarray(late, np.float32))


def test_expand_to_int8():
    case = nvfp4_matmul.Case("expand to int8", 0, 5120, 1024)
    packed, scale = nvfp4_weights(case)
    codes, row_scale = jax.jit(expand_to_int8)(packed, scale, jnp.float32(1.0))
    np.testing.assert_array_equal(codes, jax.jit(emulate_expand)(packed, scale, 1.0 / row_scale))
