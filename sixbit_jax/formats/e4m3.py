"""E4M3, the type of NVFP4's block scales, read by arithmetic on its bits.

`astype` says the same. But a CPU has no instruction for it, and where a scale is broadcast over its block, XLA converts
it once for every value: that took longer than the product the values were for.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_BIAS, _F32_BIAS, _MANTISSA, _F32_MANTISSA = 7, 127, 3, 23
_NAN = 0x7F


def decode_e4m3(x: Float[Array, "*shape"], dtype: Any = jnp.float32) -> Float[Array, "*shape"]:
    """The values of an array of `float8_e4m3fn`, exact in every float dtype of 16 bits or more.

    >>> import jax.numpy as jnp
    >>> decode_e4m3(jnp.array([448, -1.75, 2.0**-9], jnp.float8_e4m3fn)).tolist()
    [448.0, -1.75, 0.001953125]
    """
    bits = lax.bitcast_convert_type(x, jnp.uint8).astype(jnp.uint32)
    magnitude = bits & 0x7F
    # Exponent and mantissa are neighbours in both types: one shift, and the difference of the biases.
    shift = _F32_MANTISSA - _MANTISSA
    normal = lax.bitcast_convert_type((magnitude << shift) + ((_F32_BIAS - _BIAS) << _F32_MANTISSA), jnp.float32)
    subnormal = magnitude.astype(jnp.float32) * 2.0 ** (1 - _BIAS - _MANTISSA)
    value = jnp.where(magnitude >> _MANTISSA == 0, subnormal, normal)
    value = jnp.where(magnitude == _NAN, jnp.nan, value)
    return jnp.where(bits > _NAN, -value, value).astype(dtype)
