"""Two four-bit codes in a byte, the first in the low nibble: the order of ModelOpt, torchao and XLA's own bitcast."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, UInt8


def pack_nibbles(codes: UInt8[Array, "*batch k"]) -> UInt8[Array, "*batch kp"]:
    """Codes 0 to 15 in pairs along the last axis, which must be even.

    >>> import jax.numpy as jnp
    >>> [hex(byte) for byte in pack_nibbles(jnp.array([1, 2, 3, 4], jnp.uint8)).tolist()]
    ['0x21', '0x43']
    """
    pairs = codes.reshape(*codes.shape[:-1], codes.shape[-1] // 2, 2)
    # A reduction, because XLA does not repeat it: what takes the pairs apart by slices is fused with all that made the
    # codes, once for each half, and again for every reader.
    return lax.reduce(pairs << _shifts(pairs), np.uint8(0), lax.bitwise_or, (codes.ndim,))


def unpack_nibbles(packed: UInt8[Array, "*batch kp"]) -> UInt8[Array, "*batch k"]:
    """The codes of `pack_nibbles`.

    >>> import jax.numpy as jnp
    >>> unpack_nibbles(jnp.array([0x21, 0x43], jnp.uint8))
    Array([1, 2, 3, 4], dtype=uint8)
    """
    # Shifts by 0 and 4 along a new axis fuse into what reads the codes; stacking two halves would write them out.
    pairs = jnp.broadcast_to(packed[..., None], (*packed.shape, 2))
    return ((pairs >> _shifts(pairs)) & 15).reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def _shifts(pairs: UInt8[Array, "*batch 2"]) -> UInt8[Array, "*batch 2"]:
    return jnp.broadcast_to(jnp.array([0, 4], jnp.uint8), pairs.shape)
