"""Arithmetic that formats share: rounding to integers, and division with the same bits on every device."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

# A largest magnitude below this counts as zero: the reciprocal of its scale would leave the range of f32.
SMALLEST_AMAX = 2.0**-100
# Between these an f32 can be cut in two halves, and the halves multiplied, without underflow.
_SMALLEST, _LARGEST = 2.0**-90, 2.0**90


def round_to_integer(x: Float[Array, "..."], key: Array | None = None) -> Float[Array, "..."]:
    """To the nearest integer, halves to even; with a key to either neighbour, with `x` as the expected value."""
    if key is None:
        return jnp.round(x)
    low = jnp.floor(x)
    # x - low is exact, and zero for integers: they never move.
    return low + (jax.random.uniform(key, x.shape) < x - low).astype(x.dtype)


def divide(x: Float32[Array, "*shape"], y: Float32[Array, "..."] | float) -> Float32[Array, "*shape"]:
    """`x / y`, rounded once, whatever the compiler makes of a division.

    XLA multiplies by the rounded reciprocal of a constant or broadcast divisor, makes one division of two, and on a GPU
    divides to two units in the last place. One bit is enough to change a block scale.
    """
    y = jnp.broadcast_to(jnp.asarray(y, jnp.float32), x.shape)
    return round_quotient(x, y, x / y)


def round_quotient(
    x: Float32[Array, "*shape"], y: Float32[Array, "*shape"], quotient: Float32[Array, "*shape"]
) -> Float32[Array, "*shape"]:
    """The correctly rounded x / y from a quotient that is off by a few units in the last place.

    The remainder x - quotient · y is exact: halves of 12 bits have exact products, and each difference cancels what the
    next product needs.
    """
    (q_high, q_low), (y_high, y_low) = _halves(quotient), _halves(y)
    remainder = x - q_high * y_high - q_high * y_low - q_low * y_high - q_low * y_low
    return jnp.where(_in_range(x) & _in_range(y) & _in_range(quotient), quotient + remainder / y, quotient)


def _halves(x: Float32[Array, "*shape"]) -> tuple[Float32[Array, "*shape"], Float32[Array, "*shape"]]:
    """x as the sum of its upper 12 bits and the rest."""
    bits = lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFFF000)
    high = lax.bitcast_convert_type(bits, jnp.float32)
    return high, x - high


def _in_range(x: Float32[Array, "*shape"]) -> Array:
    return (jnp.abs(x) > _SMALLEST) & (jnp.abs(x) < _LARGEST)
