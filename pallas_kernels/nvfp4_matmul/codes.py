"""E2M1 in integer arithmetic, low nibble first. For expanding, and for emulations."""

import jax.numpy as jnp
from jax import Array, lax

BLOCK = 16


def unpack(packed: Array) -> Array:
    """u8 (n, k/2) to codes 0 to 15, s32 (n, k)."""
    n, half = packed.shape
    pairs = packed.astype(jnp.int32)
    return jnp.stack([pairs & 15, pairs >> 4], axis=-1).reshape(n, 2 * half)


def values(codes: Array) -> Array:
    """The values of codes, f32."""
    magnitude = codes & 7
    exponent, mantissa = magnitude >> 1, magnitude & 1
    doubled = jnp.where(exponent == 0, mantissa, lax.shift_left(mantissa | 2, jnp.maximum(exponent, 1) - 1))
    signed = jnp.where(codes > 7, -doubled, doubled)
    return signed.astype(jnp.float32) * 0.5


def scaled_values(packed: Array, block_scale: Array) -> Array:
    """Code × block scale, f32 (n, k): six significant bits, so exact in bf16 too."""
    n, blocks = block_scale.shape
    v = values(unpack(packed)).reshape(n, blocks, BLOCK)
    return (v * block_scale.astype(jnp.float32)[..., None]).reshape(n, blocks * BLOCK)
