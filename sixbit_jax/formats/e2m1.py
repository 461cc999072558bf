"""E2M1, the four-bit float: one sign, two exponent and one mantissa bit.

    code   0    1    2    3    4    5    6    7      8 to 15: the same values, negative
    value  0    0.5  1    1.5  2    3    4    6

There is no infinity and no NaN. Arithmetic only, no four-bit dtypes: it runs on every backend, and XLA fuses it.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped, UInt8

from sixbit_jax.formats.rounding import round_to_integer

E2M1_MAX = 6.0
_BIAS, _F32_BIAS, _MANTISSA, _F32_MANTISSA = 1, 127, 1, 23


def encode_e2m1(x: Float[Array, "*shape"], key: Array | None = None) -> UInt8[Array, "*shape"]:
    """The codes of the nearest values, ties to the even code; a magnitude above 6, infinite or NaN becomes 6.

    With a `key`, rounding is stochastic: to one of the two neighbours, with `x` as the expected value.

    >>> import jax.numpy as jnp
    >>> encode_e2m1(jnp.array([0.4, 2.5, -3.0, 100.0]))
    Array([ 1,  4, 13,  7], dtype=uint8)
    """
    x = x.astype(jnp.float32)
    magnitude = jnp.abs(x)
    magnitude = jnp.where(magnitude < E2M1_MAX, magnitude, E2M1_MAX)
    # Neighbours are 0.5 apart below 2, 1 apart below 4, then 2: on each range the code is an integer plus a constant.
    low, middle = magnitude < 2, magnitude < 4
    steps = magnitude * jnp.where(low, 2.0, jnp.where(middle, 1.0, 0.5))
    code = round_to_integer(steps, key) + jnp.where(low, 0.0, jnp.where(middle, 2.0, 4.0))
    return code.astype(jnp.uint8) | (jnp.signbit(x).astype(jnp.uint8) << 3)


def decode_e2m1(codes: UInt8[Array, "*shape"], dtype: Any = jnp.float32) -> Shaped[Array, "*shape"]:
    """The values of codes 0 to 15, exact in every float dtype of eight bits or more.

    >>> import jax.numpy as jnp
    >>> decode_e2m1(jnp.array([1, 4, 13, 7], jnp.uint8))
    Array([ 0.5,  2. , -3. ,  6. ], dtype=float32)
    """
    magnitude = (codes & 7).astype(jnp.uint32)
    # As in e4m3: exponent and mantissa are neighbours, here and in f32. Few operations, so that many tensors fuse.
    bits = (magnitude << (_F32_MANTISSA - _MANTISSA)) + ((_F32_BIAS - _BIAS) << _F32_MANTISSA)
    normal = lax.bitcast_convert_type(bits, jnp.float32)
    value = jnp.where(magnitude >> _MANTISSA == 0, magnitude.astype(jnp.float32) * 0.5, normal)
    return jnp.where(codes > 7, -value, value).astype(dtype)
