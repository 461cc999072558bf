"""The kernel's results in plain JAX."""

import jax
import jax.numpy as jnp
from jax import Array, lax


def emulate(x: Array, y: Array, deltas: Array, place: Array) -> tuple[Array, Array, Array]:
    """As the kernel: y, the store, and the four sums. Only the order of what is summed differs."""
    place = jnp.clip(place, 0, deltas.shape[0] - 1)
    old = lax.dynamic_index_in_dim(deltas, place, 0, keepdims=False)
    before, after, last = (each.astype(jnp.float32) for each in (x, y, old))
    delta = after - before
    sums = jnp.stack([jnp.abs(each).sum() for each in (delta, before, delta - last, last)])
    # Never below zero; but now the write has to wait for the read, and XLA updates in place. Without a reason to wait
    # it keeps a copy of all deltas to read from. Behind a barrier: written from what it is computed from, XLA would
    # hold on to x, and copy it.
    place = place + (sums[2] + sums[3] < 0).astype(place.dtype)
    kept = lax.optimization_barrier(delta.astype(deltas.dtype))
    return y, lax.dynamic_update_index_in_dim(deltas, kept, place, 0), sums


def emulate_many(*operands: Array, batched: list[bool]) -> tuple[Array, Array, Array]:
    """For several at once, of which some operands may be the same."""
    return jax.vmap(emulate, in_axes=[0 if each else None for each in batched])(*operands)
