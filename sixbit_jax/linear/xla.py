"""XLA's own products (cuBLAS or Triton on a GPU): operands in their dtype, accumulation in f32 or s32.

A quantized product is one mechanism for every pair of formats: both sides become an array of codes or values that a
matrix unit takes, and scales per row and group of k, which are applied to the sums.

    activations   INT8, INT4: codes, scale per token or group   NVFP4: code × block scale in bf16, one tensor scale
    weights       INT8, INT4: codes, scale per row or group     NVFP4: the same, or expanded to INT8 for integers

Two sides of codes meet in s8 × s8 -> s32; any other pair in bf16, where all of these values are exact (in f32 when the
activations are f32 and stay it).
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Shaped

from sixbit_jax.formats import (
    Int8Tensor,
    NVFP4Tensor,
    QuantizedTensor,
    QuantizedWeight,
    expand_nvfp4,
    to_int8,
)
from sixbit_jax.linear.activations import Activations, quantize, rotate, smooth, value_of
from sixbit_jax.linear.spec import INTEGERS, LinearSpec


def supports(spec: LinearSpec) -> str | None:
    if not spec.quantized:
        if spec.act is not None:
            return f'activations "{spec.act}" need a quantized weight'
        if spec.x != spec.w:
            return f"x is {spec.x} and w is {spec.w}: cast one of them"
        return None
    groups = sorted((spec.w_groups, _act_groups(spec)))
    if groups[1] % groups[0]:
        return f"a row of k={spec.k} has {groups[1]} scales on one side and {groups[0]} on the other: neither divides"
    return None


def run(
    x: Float[Array, "... k"],
    w: Float[Array, "n k"] | QuantizedWeight,
    bias: Float[Array, " n"] | None,
    act: str | None,
) -> Float[Array, "... n"]:
    if isinstance(w, QuantizedWeight):
        y = _quantized(x, w, act)
        return (y if bias is None else y + jnp.broadcast_to(bias.astype(y.dtype), y.shape)).astype(x.dtype)
    y = _dense(x, w)
    return y if bias is None else y + jnp.broadcast_to(bias.astype(y.dtype), y.shape)


def _dense(x: Float[Array, "... k"], w: Float[Array, "n k"]) -> Float[Array, "... n"]:
    # Without HIGHEST a GPU rounds f32 operands to tf32, and an f32 run would no longer be the yardstick it is meant
    # to be. A 16-bit product accumulates in f32 all the same; asking for an f32 result would write it out at twice
    # the bytes (14 ms of a 1.3B forward on an H200).
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(x, w, (((x.ndim - 1,), (1,)), ((), ())), precision=precision)


def _quantized(x: Float[Array, "... k"], w: QuantizedWeight, act: str | None) -> Float32[Array, "... n"]:
    smoothed = smooth(x, w)
    rounded = quantize(rotate(smoothed, w), act, w.act_group)
    left = _left(rounded, x.dtype)
    # Expanded weights are four times the stored ones. Out of a loop, where nothing but the weight decides them, XLA
    # would compute all of them once and keep them; behind the barrier they also wait for the activations of this step.
    values, stored = lax.optimization_barrier((left.values, w.weight))
    right = _right(stored, values.dtype)
    y = _scaled_product(dataclasses.replace(left, values=values), right)
    if w.zero is not None:
        y = y + _dot(_group_sums(value_of(rounded), w.zero.shape[-1]), w.zero)
    if w.low_rank is not None:
        down, up = (part.astype(x.dtype) for part in w.low_rank)
        y = y + _dot(_dot(smoothed.astype(x.dtype), down).astype(x.dtype), up)
    return y


@dataclasses.dataclass(frozen=True)
class _Side:
    """One operand as (rows, k): what a matrix unit multiplies, and f32 scales per row and group (…, 1 or groups)."""

    values: Any
    scale: Any | None


def _left(x: Activations, dtype: Any) -> _Side:
    if isinstance(x, Int8Tensor):
        return _Side(x.data, x.scale)
    if isinstance(x, NVFP4Tensor):
        return _expanded(x, jnp.bfloat16)
    return _Side(x.astype(dtype), None)


def _right(w: QuantizedTensor, dtype: Any) -> _Side:
    """The weight as its partner needs it: codes for codes, floats for floats."""
    if isinstance(w, NVFP4Tensor) and dtype != jnp.int8:
        return _expanded(w, dtype)
    codes = to_int8(w)
    return _Side(codes.data.astype(dtype), codes.scale)


def _expanded(t: NVFP4Tensor, dtype: Any) -> _Side:
    ones = (1,) * (len(t.shape) - t.tensor_scale.ndim)
    return _Side(expand_nvfp4(t, dtype), t.tensor_scale.reshape(*t.tensor_scale.shape, *ones))


def _scaled_product(left: _Side, right: _Side) -> Float32[Array, "... n"]:
    """Σ over groups of (sum over the group's k) × left scale × right scale."""
    groups = max(side.scale.shape[-1] for side in (left, right) if side.scale is not None)
    if groups == 1:
        return _apply_scales(_dot(left.values, right.values), _one(left.scale), _one(right.scale))

    def add_group(total: Array, index: Array) -> tuple[Array, None]:
        part = _dot(_take(left.values, index, groups), _take(right.values, index, groups))
        return total + _apply_scales(part, _pick(left.scale, index, groups), _pick(right.scale, index, groups)), None

    shape = (*left.values.shape[:-1], right.values.shape[0])
    # A scan, because the partial sums of all groups together would be the size of the output times the groups.
    return lax.scan(add_group, jnp.zeros(shape, jnp.float32), jnp.arange(groups))[0]


def _apply_scales(
    y: Float32[Array, "... n"], left: Float32[Array, "..."] | None, right: Float32[Array, "..."] | None
) -> Float32[Array, "... n"]:
    """Row scales of both sides on the sums: the left one belongs to y's rows, the right one to its columns."""
    if left is not None:
        y = y * jnp.broadcast_to(left[..., None], y.shape)
    return y if right is None else y * jnp.broadcast_to(right, y.shape)


def _one(scale: Float32[Array, "... g"] | None) -> Float32[Array, "..."] | None:
    return None if scale is None else scale[..., 0]


def _pick(scale: Float32[Array, "... g"] | None, index: Array, groups: int) -> Float32[Array, "..."] | None:
    """The scale that holds in group `index` of `groups`, of which one scale may cover several."""
    if scale is None:
        return None
    return lax.dynamic_index_in_dim(scale, index * scale.shape[-1] // groups, axis=-1, keepdims=False)


def _take(x: Shaped[Array, "... k"], index: Array, groups: int) -> Shaped[Array, "... c"]:
    size = x.shape[-1] // groups
    return lax.dynamic_slice_in_dim(x, index * size, size, axis=-1)


def _dot(x: Shaped[Array, "... k"], w: Shaped[Array, "n k"]) -> Float32[Array, "... n"]:
    """s8 × s8 in s32, anything else in f32; returned as f32."""
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT
    kind = jnp.int32 if x.dtype == jnp.int8 else jnp.float32
    dimensions = (((x.ndim - 1,), (1,)), ((), ()))
    return lax.dot_general(x, w, dimensions, precision=precision, preferred_element_type=kind).astype(jnp.float32)


def _group_sums(x: Float32[Array, "... k"], groups: int) -> Float32[Array, "... g"]:
    return x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups).sum(-1)


def _act_groups(spec: LinearSpec) -> int:
    return spec.k // spec.act_group if spec.act in INTEGERS and spec.act_group else 1
