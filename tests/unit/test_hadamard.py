"""The rotation: an orthonormal, symmetric involution, the same numbers by both implementations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from sixbit_jax.formats import hadamard

IMPLEMENTATIONS = ["matrix", "fast"]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("block", [1, 2, 16, 128])
def test_equals_scipys_matrix_in_float64(rng, implementation, block):
    x = rng.standard_normal((3, 2, 256))
    exact = (x.reshape(3, 2, -1, block) @ scipy.linalg.hadamard(block)).reshape(x.shape) / np.sqrt(block)
    y = hadamard(jnp.asarray(x, jnp.float32), block, implementation=implementation)
    # At most 128 additions of values around 1, in f32: sqrt(128) roundings of partial sums below 40, over sqrt(128).
    np.testing.assert_allclose(y, exact, atol=40 * 2.0**-24 * 4, rtol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rotates_there_and_back(rng, implementation):
    x = jnp.asarray(rng.standard_normal((4, 256)), jnp.float32)
    twice = hadamard(hadamard(x, implementation=implementation), implementation=implementation)
    np.testing.assert_allclose(twice, x, atol=2e-6, rtol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bf16_is_rounded_once(rng, implementation):
    x = jnp.asarray(rng.standard_normal((4, 256)), jnp.bfloat16)
    exact = hadamard(x.astype(jnp.float32), implementation=implementation)
    y = hadamard(x, implementation=implementation)
    assert y.dtype == jnp.bfloat16
    # Half a unit in the last place of bf16, and the f32 sums.
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2.0**-8, atol=2e-6)


def test_a_product_stays_what_it_was(rng):
    x, w = (jnp.asarray(rng.standard_normal((n, 256)), jnp.float32) for n in (5, 7))
    np.testing.assert_allclose(hadamard(x) @ hadamard(w).T, x @ w.T, atol=1e-4, rtol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_transformations(rng, implementation):
    x = jnp.asarray(rng.standard_normal((3, 256)), jnp.float32)
    rotate = lambda x: hadamard(x, implementation=implementation)
    np.testing.assert_allclose(jax.vmap(rotate)(x), jax.jit(rotate)(x), atol=2e-6, rtol=0)
    # Symmetric: the gradient of a linear form is its rotation.
    np.testing.assert_allclose(jax.grad(lambda y: (rotate(y) * x).sum())(x), rotate(x), atol=2e-6, rtol=0)
    assert jax.eval_shape(rotate, x).shape == x.shape


def test_refusals():
    with pytest.raises(ValueError, match="block=96 is not a power of two"):
        hadamard(jnp.ones(192), 96)
    with pytest.raises(ValueError, match=r"200.*largest that divides it is 8"):
        hadamard(jnp.ones((2, 200)))
    with pytest.raises(ValueError, match='unknown implementation "quick"'):
        hadamard(jnp.ones(128), implementation="quick")
