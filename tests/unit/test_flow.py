"""Training's own ways of computing the model: one zero row that counts for all, and a backward pass that recomputes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.attention import attention
from sixbit_jax.models.wan import Context
from sixbit_jax.models.wan_config import TEXT_TOKENS
from sixbit_jax.tiny import flow
from sixbit_jax.tiny.flow import as_sampled, attend_captions
from sixbit_jax.tiny.sizes import SIZES


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


def test_recomputing_leaves_the_gradients_alone(rng):
    sizes = SIZES["micro"]
    key = jax.random.key(0)
    # The head begins at zero, where no gradient reaches the blocks.
    shaken = lambda p: p + 0.02 * jax.random.normal(jax.random.fold_in(key, p.size), p.shape)
    # One program instead of several per shape of a parameter.
    params = jax.jit(lambda: jax.tree.map(shaken, flow.init_params(sizes, key)))()
    latents = jnp.asarray(rng.standard_normal((2, *sizes.latent_shape)), jnp.float32)
    ids = jnp.asarray(rng.integers(3, 100, (2, 12)), jnp.int32)

    def gradients(recompute: bool):
        loss = functools.partial(flow.loss, recompute=recompute)
        both = jax.jit(jax.grad(loss, has_aux=True), static_argnums=(1, 6))
        return jax.device_get(both(params, sizes, latents, ids, jnp.ones_like(ids), key, None)[0])

    for ours, theirs in zip(*(jax.tree.leaves(gradients(choice)) for choice in (True, False)), strict=True):
        # The same products of bf16; what lies between is fused, so rounded, in another way.
        assert np.linalg.norm(ours - theirs) <= 2.0**-6 * np.linalg.norm(theirs)
