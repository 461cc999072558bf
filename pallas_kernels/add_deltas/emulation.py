"""The kernel's sum in plain JAX: layer by layer, in f32, rounded once."""

import jax
import jax.numpy as jnp
from jax import Array, lax


def emulate(x: Array, codes: Array, scale: Array, places: Array) -> Array:
    """As `add_deltas`. The kernel rounds a product and its sum together, here a compiler may round both."""

    def add(total: Array, place: Array) -> tuple[Array, None]:
        its = lambda kept: lax.dynamic_index_in_dim(kept, jnp.clip(place, 0, kept.shape[0] - 1), 0, keepdims=False)
        return total + its(codes).astype(jnp.float32) * its(scale)[:, None], None

    # Unrolled it is one pass over the codes.
    return lax.scan(add, x.astype(jnp.float32), places, unroll=True)[0].astype(x.dtype)


def emulate_many(*operands: Array, batched: list[bool]) -> Array:
    """For several at once, of which some operands may be the same."""
    return jax.vmap(emulate, in_axes=[0 if each else None for each in batched])(*operands)
