"""What happens to activations before they meet a quantized weight: smoothing, rotation, rounding to the route's format.

All of it in f32, whatever the activations come in: rounding in between would be one more error than the method has.
"""

from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from sixbit_jax.formats import (
    Int8Tensor,
    NVFP4Tensor,
    QuantizedWeight,
    dequantize,
    encode_int8,
    hadamard,
    nvfp4_tensor_scale,
    quantize_int8,
    quantize_nvfp4,
)

INT8_MAX, INT4_MAX = 127, 7

# Rounded to a format, or floats as they came.
Activations: TypeAlias = Int8Tensor | NVFP4Tensor | Array


def smooth(x: Float[Array, "... k"], w: QuantizedWeight) -> Float32[Array, "... k"]:
    """x̂: each channel divided by what its weights were multiplied with."""
    x = x.astype(jnp.float32)
    return x if w.smooth is None else x / jnp.broadcast_to(w.smooth, x.shape)


def rotate(x: Float32[Array, "... k"], w: QuantizedWeight) -> Float32[Array, "... k"]:
    """x̃: rotated as the weight was."""
    return x if w.rotated is None else hadamard(x, w.rotated)


def quantize(x: Float32[Array, "... k"], act: str | None, group: int | None) -> Activations:
    """Q(x̃). Integers have one scale per token, or per `group` of its values; NVFP4 one tensor scale per matrix."""
    if act == "int8":
        return quantize_int8(x, group=group)
    if act == "int4":
        return _quantize_int4(x, group)
    if act == "nvfp4":
        return quantize_nvfp4(x, tensor_scale=_scale_per_matrix(x))
    return x


def value_of(x: Activations) -> Float32[Array, "... k"]:
    """What the rounded activations stand for."""
    return dequantize(x) if isinstance(x, Int8Tensor | NVFP4Tensor) else x


def _quantize_int4(x: Float32[Array, "... k"], group: int | None) -> Int8Tensor:
    """Codes from -7 to 7. They live in s8, where the product takes them: activations are never stored."""
    return encode_int8(x, quantize_int8(x, group=group).scale * (INT8_MAX / INT4_MAX))


def _scale_per_matrix(x: Float32[Array, "... k"]) -> Float32[Array, "..."]:
    # One per video of a batch: what a video looks like must not depend on its neighbours.
    if x.ndim <= 2:
        return nvfp4_tensor_scale(x)
    return jnp.vectorize(nvfp4_tensor_scale, signature="(m,k)->()")(x)
