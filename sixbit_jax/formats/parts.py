"""Do the arrays of a quantized tensor belong together?

Pytrees are taken apart and put together by every transformation, so nothing is checked when one is made. Where a tensor
comes from outside, in `linear` and in the readers of files, `check_parts` looks at types and shapes and names the part
that does not fit. It looks at no values, so it costs nothing and works inside a trace.
"""

import functools
from typing import Any

import jax.numpy as jnp

from sixbit_jax.formats.int4 import Int4Tensor
from sixbit_jax.formats.int8 import Int8Tensor
from sixbit_jax.formats.nvfp4 import BLOCK, NVFP4Tensor
from sixbit_jax.formats.weight import QuantizedWeight


@functools.singledispatch
def check_parts(t: Any, name: str = "w") -> None:
    """Raise a TypeError or ValueError that names the first part of `t` that does not fit the others.

    >>> import jax.numpy as jnp
    >>> check_parts(Int8Tensor(jnp.ones((2, 4), jnp.uint8), jnp.ones((2, 1))))
    Traceback (most recent call last):
    ...
    TypeError: w.data is uint8; it must be int8
    """
    raise TypeError(f"{name} is {type(t).__name__}, not a quantized tensor")


@check_parts.register
def _check_int8(t: Int8Tensor, name: str = "w") -> None:
    _type(f"{name}.data", t.data, jnp.int8)
    _per_row_or_group(f"{name}.scale", t.scale, t.shape)


@check_parts.register
def _check_int4(t: Int4Tensor, name: str = "w") -> None:
    _type(f"{name}.packed", t.packed, jnp.uint8)
    _per_row_or_group(f"{name}.scale", t.scale, t.shape)


@check_parts.register
def _check_nvfp4(t: NVFP4Tensor, name: str = "w") -> None:
    _type(f"{name}.packed", t.packed, jnp.uint8)
    _type(f"{name}.block_scale", t.block_scale, jnp.float8_e4m3fn)
    _type(f"{name}.tensor_scale", t.tensor_scale, jnp.float32)
    *lead, k = t.shape
    if k % BLOCK:
        raise ValueError(f"{name}.packed {t.packed.shape} holds rows of {k}, not of whole blocks of {BLOCK}")
    _shape(f"{name}.block_scale", t.block_scale, (*lead, k // BLOCK), t.shape)
    if t.tensor_scale.shape != tuple(lead[: t.tensor_scale.ndim]):
        raise ValueError(f"{name}.tensor_scale {t.tensor_scale.shape} must have leading axes of {t.shape}, or none")


@check_parts.register
def _check_weight(t: QuantizedWeight, name: str = "w") -> None:
    check_parts(t.weight, f"{name}.weight")
    *batch, n, k = t.shape
    if t.smooth is not None:
        _shape(f"{name}.smooth", t.smooth, (*batch, k), t.shape)
    if t.zero is not None:
        _per_row_or_group(f"{name}.zero", t.zero, t.shape)
    if t.low_rank is not None:
        down, up = t.low_rank
        _shape(f"{name}.low_rank[0]", down, (*batch, down.shape[-2], k), t.shape)
        _shape(f"{name}.low_rank[1]", up, (*batch, n, down.shape[-2]), t.shape)
    for part, block in (("rotated", t.rotated), ("act_group", t.act_group)):
        if block is not None and (block < 1 or k % block):
            raise ValueError(f"{name}.{part} is {block}, which does not divide rows of {k}")


def _type(name: str, array: Any, wanted: Any) -> None:
    if array.dtype != wanted:
        raise TypeError(f"{name} is {array.dtype}; it must be {jnp.dtype(wanted).name}")


def _shape(name: str, array: Any, wanted: tuple[int, ...], whole: tuple[int, ...]) -> None:
    if array.shape != wanted:
        raise ValueError(f"{name} has shape {array.shape}; a tensor {whole} needs {wanted}")


def _per_row_or_group(name: str, scale: Any, whole: tuple[int, ...]) -> None:
    """f32, with the axes of the tensor: leading ones as long or of one, the last a number of groups."""
    _type(name, scale, jnp.float32)
    *lead, groups = scale.shape or (0,)
    fits = scale.ndim == len(whole) and all(size in (1, full) for size, full in zip(lead, whole, strict=False))
    if not fits or groups < 1 or whole[-1] % groups:
        rows = ", ".join(map(str, whole[:-1]))
        raise ValueError(
            f"{name} has shape {scale.shape}; a tensor {whole} needs ({rows}, groups that divide {whole[-1]})"
        )
