"""Normalisations with f32 statistics. They return f32: the caller rounds once, after whatever follows in f32."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def layer_norm(
    x: Float[Array, "... d"],
    eps: float,
    scale: Float[Array, "... d"] | None = None,
    bias: Float[Array, "... d"] | None = None,
) -> Float[Array, "... d"]:
    """Modulated with scale 1 + s and a shift as bias, (b, 1, d) to x (b, s, d)."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    y = centred * lax.rsqrt((centred * centred).mean(-1, keepdims=True) + eps)
    if scale is not None:
        y = y * jnp.broadcast_to(scale, y.shape)
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def rms_norm(x: Float[Array, "... d"], eps: float, scale: Float[Array, " d"]) -> Float[Array, "... d"]:
    x = x.astype(jnp.float32)
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + eps) * jnp.broadcast_to(scale, x.shape)
