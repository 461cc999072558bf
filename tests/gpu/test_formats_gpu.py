"""The formats on a GPU have the bits they have in numpy: its divisions, rounded less well, are made good."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nvfp4_reference import numpy_nvfp4

from sixbit_jax.formats import dequantize, hadamard, quantize_int8, quantize_nvfp4

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("scale", [1e-6, 0.02, 1e4])
def test_nvfp4_bits(rng, scale):
    x = np.float32(rng.standard_normal((128, 1024)) * 10.0 ** rng.uniform(-2, 2, (128, 1)) * scale)
    t = jax.jit(quantize_nvfp4)(jnp.asarray(x))
    packed, block_scale, tensor_scale = numpy_nvfp4(x)
    assert np.asarray(t.tensor_scale) == tensor_scale
    np.testing.assert_array_equal(np.asarray(t.block_scale), block_scale)
    np.testing.assert_array_equal(t.packed, packed)


def test_int8_bits(rng):
    x = np.float32(rng.standard_normal((4096, 1024)))
    t = jax.jit(quantize_int8)(jnp.asarray(x))
    scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
    np.testing.assert_array_equal(t.scale, scale)
    np.testing.assert_array_equal(t.data, np.round(x * (np.float32(1) / scale)).astype(np.int8))
    np.testing.assert_array_equal(dequantize(t), np.asarray(t.data, np.float32) * scale)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_both_hadamards_agree(rng, dtype):
    x = jnp.asarray(rng.standard_normal((512, 1536)), dtype)
    matrix, fast = (hadamard(x, implementation=name).astype(jnp.float32) for name in ("matrix", "fast"))
    # f32 sums of 128 values; then one rounding to the dtype, which may fall to either neighbour.
    np.testing.assert_allclose(matrix, fast, rtol=2.0**-7 if dtype == jnp.bfloat16 else 0, atol=3e-6)
