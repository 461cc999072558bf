"""The kernels on a real GPU, against their emulations: every epilogue, ragged rows, the same result twice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.kernels import int8_matmul, nvfp4_matmul, quantize_rows
from benchmarks.kernels.measure import relative_error
from pallas_kernels.nvfp4_matmul import expand_to_int8
from pallas_kernels.nvfp4_matmul import nvfp4_matmul as fused
from pallas_kernels.nvfp4_matmul.codes import scaled_values
from pallas_kernels.nvfp4_matmul.expand import emulate as emulate_expand

pytestmark = pytest.mark.gpu

VARIANTS = ("plain", "gelu", "gated", "grouped")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("m", [1, 200, 4096 + 8])
def test_int8_matmul(variant, m):
    case = int8_matmul.Case("", m, 1536, 1536, variant)
    operands = int8_matmul.random_operands(case)
    run = jax.jit(functools.partial(int8_matmul.run_kernel, case))
    first, second = run(*operands), run(*operands)
    # bf16's rounding, and the hardware's approximate tanh.
    assert int8_matmul.spot_error(case, first) < 2**-8
    np.testing.assert_array_equal(np.asarray(first, np.float32), np.asarray(second, np.float32))
    assert np.isfinite(np.asarray(first, np.float32)).all()


CANDIDATES = [
    (variant, config)
    for variant in ("gelu", "gated", "grouped")
    for config in int8_matmul.candidates(int8_matmul.Case("", 32760, 5120, 5120, variant))
]


@pytest.mark.parametrize(("variant", "config"), CANDIDATES, ids=str)
def test_int8_matmul_candidates(variant, config):
    """Ragged rows, and columns that no width of a tile but 128 divides."""
    case = int8_matmul.Case("", 1003, 640, 1280, variant)
    operands = int8_matmul.random_operands(case)
    result = int8_matmul.run_kernel(case, *operands, config=config)
    assert int8_matmul.spot_error(case, result) < 2**-8


@pytest.mark.parametrize("variant", quantize_rows.VARIANTS)
@pytest.mark.parametrize("k", [1536, 5120, 8960, 13824])
def test_quantize_rows(variant, k):
    case = quantize_rows.Case("", 1003, k, variant)
    operands = quantize_rows.random_operands(case)
    result = jax.jit(functools.partial(quantize_rows.run_kernel, case))(*operands)
    # Sums in another order, hence the middle between two codes may fall either way.
    assert quantize_rows.differing_codes(case, operands, result, rows=1003) < 1e-3


@pytest.mark.parametrize("m", [1, 8, 33, 64, 200])
def test_fused_nvfp4(m):
    case = nvfp4_matmul.Case("fused", m, 1536, 8960)
    packed, scale = nvfp4_matmul.random_weights(case)[0]
    x = jax.random.normal(jax.random.key(1), (m, case.k), jnp.bfloat16)
    actual = fused(x, packed, scale, jnp.float32(1e-3))
    expected = np.asarray(x, np.float64) @ np.asarray(scaled_values(packed, scale), np.float64).T * 1e-3
    assert relative_error(actual.astype(jnp.float32), expected) < 2**-8


@pytest.mark.parametrize("m", [8, 64])
def test_fused_nvfp4_candidates(m):
    case = nvfp4_matmul.Case("fused", m, 1536, 8960)
    packed, scale = nvfp4_matmul.random_weights(case)[0]
    x = jax.random.normal(jax.random.key(1), (m, case.k), jnp.bfloat16)
    bias = jax.random.normal(jax.random.key(2), (case.n,))
    expected = np.asarray(x, np.float64) @ np.asarray(scaled_values(packed, scale), np.float64).T * 1e-3 + np.asarray(
        bias
    )
    for config in nvfp4_matmul.candidates(case):
        actual = fused(x, packed, scale, jnp.float32(1e-3), bias=bias, config=config).astype(jnp.float32)
        assert relative_error(actual, expected) < 2**-8, config


def test_expand_to_int8():
    case = nvfp4_matmul.Case("expand to int8", 0, 5120, 1024)
    packed, scale = nvfp4_matmul.random_weights(case)[0]
    codes, row_scale = jax.jit(expand_to_int8)(packed, scale, jnp.float32(1.0))
    np.testing.assert_array_equal(codes, jax.jit(emulate_expand)(packed, scale, 1.0 / row_scale))
