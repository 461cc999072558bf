"""The oracle: f32 at the highest precision with the whole score matrix in memory."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

if TYPE_CHECKING:
    from sixbit_jax.attention.api import AttentionSpec


def supports(spec: "AttentionSpec") -> str | None:
    return None


def run(
    q: Float[Array, "b q a c"], k: Float[Array, "b k a c"], v: Float[Array, "b k a c"], valid_keys: int
) -> Float[Array, "b q a c"]:
    return attend(q.astype(jnp.float32), k.astype(jnp.float32), v.astype(jnp.float32), valid_keys).astype(q.dtype)


def attend(
    q: Float[Array, "b q a c"], k: Float[Array, "b k a c"], v: Float[Array, "b k a c"], valid_keys: int
) -> Float[Array, "b q a c"]:
    """Scores and softmax in f32, both products in the operands' dtype."""
    precision = lax.Precision.HIGHEST if q.dtype == jnp.float32 else lax.Precision.DEFAULT
    # Padding is cut off instead of masked: its length is static, and keys that are never read cost nothing.
    k, v = k[:, :valid_keys], v[:, :valid_keys]
    scores = jnp.einsum("bqac,bkac->baqk", q, k, precision=precision, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1).astype(v.dtype)
    out = jnp.einsum("baqk,bkac->bqac", weights, v, precision=precision, preferred_element_type=jnp.float32)
    return out.astype(q.dtype)
