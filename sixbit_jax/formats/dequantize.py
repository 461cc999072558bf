"""Back to floats, and from one format to another: functions over every format."""

import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from sixbit_jax.formats.e2m1 import decode_e2m1
from sixbit_jax.formats.e4m3 import decode_e4m3
from sixbit_jax.formats.int4 import Int4Tensor, unpack_int4
from sixbit_jax.formats.int8 import Int8Tensor, encode_int8, int8_scale, per_value
from sixbit_jax.formats.nvfp4 import NVFP4Tensor, in_blocks, lead
from sixbit_jax.formats.packing import unpack_nibbles

QuantizedTensor: TypeAlias = NVFP4Tensor | Int8Tensor | Int4Tensor


# Inlined into programs that call it; called alone, it is one program instead of ten operations.
_one_program = functools.partial(jax.jit, static_argnums=1, static_argnames="dtype", inline=True)


@functools.singledispatch
def dequantize(t: Any, dtype: Any = jnp.float32) -> Any:
    """The values of a quantized tensor: code × scales in f32, then rounded to `dtype`.

    Of a `QuantizedWeight` it is the dense weight that it stands for (`effective_weight`).

    >>> import jax.numpy as jnp
    >>> from sixbit_jax.formats import quantize_int8, quantize_nvfp4
    >>> x = jnp.array([[6.0, 3.0, -2.0, 0.1] * 4])
    >>> dequantize(quantize_nvfp4(x, tensor_scale=1.0))[0, :4].tolist()
    [6.0, 3.0, -2.0, 0.0]
    >>> dequantize(quantize_int8(x), jnp.bfloat16).dtype
    dtype(bfloat16)
    """
    raise TypeError(f"dequantize: {type(t).__name__} is not a quantized tensor")


@dequantize.register(NVFP4Tensor)
@_one_program
def _dequantize_nvfp4(t: NVFP4Tensor, dtype: Any = jnp.float32) -> Array:
    values = expand_nvfp4(t, jnp.float32)
    return (values * lead(t.tensor_scale, values.ndim)).astype(dtype)


@dequantize.register(Int8Tensor)
@_one_program
def _dequantize_int8(t: Int8Tensor, dtype: Any = jnp.float32) -> Array:
    return (t.data.astype(jnp.float32) * per_value(t.scale, t.shape)).astype(dtype)


@dequantize.register(Int4Tensor)
@_one_program
def _dequantize_int4(t: Int4Tensor, dtype: Any = jnp.float32) -> Array:
    return (unpack_int4(t).astype(jnp.float32) * per_value(t.scale, t.shape)).astype(dtype)


def expand_nvfp4(t: NVFP4Tensor, dtype: Any = jnp.bfloat16) -> Float[Array, "*batch k"]:
    """Code × block scale, without the tensor scale: at most six significant bits, so exact in bf16 and f16.

    A product with these values is as good as one with the f32 values, once the tensor scale multiplies its result.

    >>> import jax.numpy as jnp
    >>> from sixbit_jax.formats import quantize_nvfp4
    >>> expand_nvfp4(quantize_nvfp4(jnp.full((1, 16), 0.1)))[0, 0]
    Array(2688, dtype=bfloat16)
    """
    codes = decode_e2m1(unpack_nibbles(t.packed), dtype)
    return (in_blocks(codes) * decode_e4m3(t.block_scale, dtype)[..., None]).reshape(t.shape)


def value_scales(t: QuantizedTensor) -> Float32[Array, "..."]:
    """The scale of every value, all levels multiplied.

    >>> import jax.numpy as jnp
    >>> from sixbit_jax.formats import quantize_int8
    >>> value_scales(quantize_int8(jnp.array([[127.0, 1.0], [254.0, 2.0]]))).tolist()
    [[1.0, 1.0], [2.0, 2.0]]
    """
    if isinstance(t, NVFP4Tensor):
        blocks = decode_e4m3(t.block_scale) * lead(t.tensor_scale, t.ndim)
        return per_value(blocks, t.shape)
    return per_value(t.scale, t.shape)


@functools.singledispatch
def to_int8(t: Any) -> Int8Tensor:
    """The same values as an `Int8Tensor`, for a product of integers.

    INT4 codes carry over exactly, with their scales. NVFP4 is rounded again, to one scale per row: its block scales
    vary along k, where an integer product cannot apply them.

    >>> import jax.numpy as jnp
    >>> from sixbit_jax.formats import quantize_nvfp4
    >>> t = to_int8(quantize_nvfp4(jnp.array([[6.0, 3.0, -2.0, 0.0] * 4])))
    >>> t.data[0, :4].tolist(), t.scale.shape
    ([127, 64, -42, 0], (1, 1))
    """
    raise TypeError(f"to_int8: {type(t).__name__} is not a quantized tensor")


@to_int8.register(NVFP4Tensor)
@functools.partial(jax.jit, inline=True)
def _nvfp4_to_int8(t: NVFP4Tensor) -> Int8Tensor:
    values = expand_nvfp4(t, jnp.float32)
    amax = jnp.max(jnp.abs(values), axis=-1, keepdims=True)
    row = encode_int8(values, int8_scale(amax))
    return Int8Tensor(row.data, row.scale * lead(t.tensor_scale, values.ndim))


@to_int8.register(Int8Tensor)
def _int8_to_int8(t: Int8Tensor) -> Int8Tensor:
    return t


@to_int8.register(Int4Tensor)
def _int4_to_int8(t: Int4Tensor) -> Int8Tensor:
    return Int8Tensor(unpack_int4(t), t.scale)
