"""The kernel's block algorithm in plain JAX: same partial sums, same order in the epilogue."""

import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels.int8_matmul.config import TILE_K


def emulate(
    x: Array,
    w: Array,
    x_scale: Array,
    w_scale: Array,
    bias: Array | None,
    gate: Array | None,
    residual: Array | None,
    activation: str | None,
    out_dtype: jnp.dtype,
) -> Array:
    total = _group_sums(x, w, x_scale) if x_scale.ndim == 2 else _products(x, w).astype(jnp.float32) * x_scale[:, None]
    y = total * w_scale[None]
    if bias is not None:
        y = y + bias[None]
    if activation == "gelu_tanh":
        y = gelu_tanh(y)
    if gate is not None:
        y = gate[None] * y
    if residual is not None:
        y = residual.astype(jnp.float32) + y
    return y.astype(out_dtype)


def gelu_tanh(y: Array) -> Array:
    """PyTorch's `gelu(approximate="tanh")`, written so that kernels may use it too."""
    inner = 0.7978845608028654 * (y + 0.044715 * y * y * y)
    return 0.5 * y * (1.0 + jnp.tanh(inner))


def _products(x: Array, w: Array) -> Array:
    return lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)


def _group_sums(x: Array, w: Array, x_scale: Array) -> Array:
    """Σ over groups of K of (exact products) × (the group's scale), in f32, group after group."""
    m, k = x.shape

    def add(group, total):
        columns = lambda a: lax.dynamic_slice_in_dim(a, group * TILE_K, TILE_K, 1)
        scale = lax.dynamic_slice_in_dim(x_scale, group, 1, 1)
        return total + _products(columns(x), columns(w)).astype(jnp.float32) * scale

    return lax.fori_loop(0, k // TILE_K, add, jnp.zeros((m, w.shape[0]), jnp.float32))
