"""Attention in training: one zero row that counts for all of them is all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.attention import attention
from sixbit_jax.models.wan import Context
from sixbit_jax.models.wan_config import TEXT_TOKENS
from sixbit_jax.tiny.flow import as_sampled, attend_captions


@pytest.mark.parametrize("rows", [1, 2, 50, TEXT_TOKENS])
def test_a_counted_row_is_as_many_rows(rng, rows):
    q, k, v = (jnp.asarray(rng.standard_normal((2, size, 3, 16)), jnp.float32) for size in (7, rows, rows))
    whole = as_sampled(Context(k[None], v[None]))
    assert whole.k.shape == (1, 2, TEXT_TOKENS, 3, 16)
    counted = attend_captions(q, k, v)
    repeated = attention(q, whole.k[0], whole.v[0], implementation="reference")
    # Sums of 512 weights that add up to one, in another order.
    np.testing.assert_allclose(counted, repeated, atol=512 * 2.0**-24 * float(jnp.abs(v).max()))


def test_its_gradients_are_those_of_all_rows(rng):
    q, k, v = (jnp.asarray(rng.standard_normal((1, size, 2, 8)), jnp.float32) for size in (5, 4, 4))

    def repeated(q, k, v):
        whole = as_sampled(Context(k[None], v[None]))
        return (attention(q, whole.k[0], whole.v[0], implementation="reference") ** 2).sum()

    counted = lambda q, k, v: (attend_captions(q, k, v) ** 2).sum()
    for ours, theirs in zip(*(jax.grad(f, (0, 1, 2))(q, k, v) for f in (counted, repeated)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
