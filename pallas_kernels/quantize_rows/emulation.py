"""The kernel's algorithm in plain JAX, and the arithmetic both share."""

import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels.int8_matmul.emulation import gelu_tanh
from pallas_kernels.quantize_rows.config import GROUP
from pallas_kernels.quantize_rows.spec import Spec, code_scale, moments, rounded_to_codes, signs


def emulate(
    x: Array, factor: Array | None = None, offset: Array | None = None, *, spec: Spec
) -> tuple[Array, Array, Array, Array]:
    """Codes s8 (m, k), scale f32 (m,) or (m, k/128), Σ|x| and max|x| f32 (m,)."""
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
    groups = y.astype(jnp.bfloat16).reshape(m, k // GROUP, GROUP)
    rotated = _rotate(groups) if spec.rotate else groups.astype(jnp.float32)
    amax = jnp.max(jnp.abs(rotated), axis=(-1,) if spec.grouped else (-2, -1), keepdims=True)
    scale, inverse = code_scale(amax, spec)
    codes = rounded_to_codes(rotated * inverse).reshape(m, k)
    return codes, scale.reshape((m, -1) if spec.grouped else (m,)), magnitude.sum(1), magnitude.max(1)


def _rotate(groups: Array) -> Array:
    """Sylvester's rotation, but for the factor 1 / √128: two products with the 64-wide matrix and a butterfly."""
    matrix = jnp.asarray(signs(GROUP // 2), jnp.float32)
    halves = (jnp.matmul(half.astype(jnp.float32), matrix, precision=lax.Precision.HIGHEST) for half in _split(groups))
    a, b = halves
    return jnp.concatenate([a + b, a - b], axis=-1)


def _split(groups: Array) -> tuple[Array, Array]:
    half = groups.shape[-1] // 2
    return groups[..., :half], groups[..., half:]
