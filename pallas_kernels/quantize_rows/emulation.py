"""The kernel's algorithm in plain JAX, and the arithmetic both share."""

import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels.int8_matmul.emulation import gelu_tanh
from pallas_kernels.quantize_rows.config import GROUP
from pallas_kernels.quantize_rows.spec import (
    BLOCK,
    E2M1_MAX,
    E4M3_MAX,
    E4M3_SMALLEST,
    Spec,
    code_scale,
    moments,
    rounded_to_codes,
    signs,
)
from pallas_kernels.rounding import rounded


def emulate(x: Array, factor: Array | None = None, offset: Array | None = None, *, spec: Spec) -> tuple[Array, ...]:
    """Codes s8 (m, k), scale f32 (m,) or (m, k/128), Σ|x| and max|x| f32 (m,); in NVFP4 packed, and block scales."""
    m, k = x.shape
    y = x.astype(jnp.float32)
    if spec.norm is not None:
        mean, inverse = moments(jnp.sum(y, axis=1), jnp.sum(y * y, axis=1), k, spec)
        y = (y - mean[:, None]) * inverse[:, None]
    if factor is not None and offset is not None:
        y = y * factor[None] + offset[None]
    if spec.activation == "gelu_tanh":
        y = gelu_tanh(y)
    magnitude = jnp.abs(y)
    groups = rounded(y, jnp.bfloat16).reshape(m, k // GROUP, GROUP)
    rotated = _rotate(groups) if spec.rotate else groups
    amax = jnp.max(jnp.abs(rotated), axis=(-1,) if spec.grouped else (-2, -1), keepdims=True)
    scale, inverse = code_scale(amax, spec)
    if spec.form == "nvfp4":
        packed, block_scale = _nvfp4(rotated.reshape(m, k), inverse.reshape(m, 1))
        return packed, scale.reshape(m), magnitude.sum(1), magnitude.max(1), block_scale
    codes = rounded_to_codes(rotated * inverse).reshape(m, k)
    return codes, scale.reshape((m, -1) if spec.grouped else (m,)), magnitude.sum(1), magnitude.max(1)


def _nvfp4(y: Array, inverse: Array) -> tuple[Array, Array]:
    """(packed u8 (m, k/2), block scales e4m3 (m, k/16)) under the inverse of the outer scale."""
    blocks = y.reshape(y.shape[0], -1, BLOCK)
    wanted = jnp.abs(blocks).max(-1) * inverse * (1 / E2M1_MAX)
    scale = jnp.clip(wanted, E4M3_SMALLEST, E4M3_MAX).astype(jnp.float8_e4m3fn)
    factor = inverse * (1 / rounded(scale, scale.dtype))
    magnitude = jnp.minimum(jnp.abs(blocks * factor[..., None]), E2M1_MAX)
    # Neighbours are 0.5 apart below 2, 1 apart below 4, then 2.
    low, middle = magnitude < 2, magnitude < 4
    steps = jnp.round(magnitude * jnp.where(low, 2.0, jnp.where(middle, 1.0, 0.5)))
    codes = (steps + jnp.where(low, 0.0, jnp.where(middle, 2.0, 4.0))).astype(jnp.uint8)
    codes = (codes | (jnp.signbit(blocks).astype(jnp.uint8) << 3)).reshape(y.shape)
    return codes[:, ::2] | (codes[:, 1::2] << 4), scale


def _rotate(groups: Array) -> Array:
    """Sylvester's rotation, but for the factor 1 / √128: two products with the 64-wide matrix and a butterfly."""
    matrix = jnp.asarray(signs(GROUP // 2), jnp.float32)
    halves = (jnp.matmul(half, matrix, precision=lax.Precision.HIGHEST) for half in _split(groups))
    a, b = halves
    return jnp.concatenate([a + b, a - b], axis=-1)


def _split(groups: Array) -> tuple[Array, Array]:
    half = groups.shape[-1] // 2
    return groups[..., :half], groups[..., half:]
