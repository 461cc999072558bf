"""INT4: integers from -8 to 7, two a byte, with an f32 scale and an optional offset.

    value = code × scale + offset

Codes are two's complement, low nibble first, so that XLA can read the bytes as `int4`. They are exact in INT8, hence a
weight in this format multiplies INT8 activations without being rounded again. The offset makes the grid asymmetric: a
zero point `z` of codes 0 to 15 is `offset = (8 - z) · scale`, and costs a product one rank-one term.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int8

from sixbit_jax.formats.packing import pack_nibbles, unpack_nibbles
from sixbit_jax.formats.storage import stored_bytes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int4Tensor:
    """Packed codes and their scales, one per row or per group along the last axis. Offsets live beside it."""

    packed: Any  # u8 (…, k / 2): two codes a byte, low nibble first
    scale: Any  # f32 (…, 1) per row, (…, k / group) per group

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.packed.shape[:-1], 2 * self.packed.shape[-1])

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """The type of a code."""
        return jnp.dtype(jnp.int4)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and of the scales."""
        return stored_bytes(self)


def pack_int4(codes: Int8[Array, "*batch k"], scale: Float32[Array, "*batch g"]) -> Int4Tensor:
    """Codes -8 to 7 with their scales.

    >>> import jax.numpy as jnp
    >>> t = pack_int4(jnp.array([[-8, 7]], jnp.int8), jnp.ones((1, 1)))
    >>> hex(t.packed[0, 0]), t.shape
    ('0x78', (1, 2))
    """
    return Int4Tensor(pack_nibbles(codes.astype(jnp.uint8) & 15), scale)


def unpack_int4(t: Int4Tensor) -> Int8[Array, "*batch k"]:
    """The codes, as s8.

    >>> import jax.numpy as jnp
    >>> unpack_int4(pack_int4(jnp.array([[-8, 7]], jnp.int8), jnp.ones((1, 1)))).tolist()
    [[-8, 7]]
    """
    return (unpack_nibbles(t.packed) ^ 8).astype(jnp.int8) - jnp.int8(8)
