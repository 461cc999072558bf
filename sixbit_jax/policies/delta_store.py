"""How a cache keeps what blocks add to their input: one slot a (branch, layer), in 16 bits, INT8 or NVFP4.

The store is a pytree whose leaves lead with the slots, so that it rides in a scan's carry and is updated in place. INT8
has one scale per token; NVFP4 blocks of 16 with one tensor scale per slot.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from sixbit_jax.formats import dequantize, quantize_int8, quantize_nvfp4, stored_bytes

Store: TypeAlias = Any


@dataclasses.dataclass(frozen=True)
class _Format:
    encode: Callable[[Array], Any]
    decode: Callable[[Any], Array]


_FORMATS = {
    "f32": _Format(lambda delta: delta.astype(jnp.float32), lambda kept: kept),
    "bf16": _Format(lambda delta: delta.astype(jnp.bfloat16), lambda kept: kept.astype(jnp.float32)),
    "int8": _Format(quantize_int8, dequantize),
    "nvfp4": _Format(quantize_nvfp4, dequantize),
}


def formats() -> tuple[str, ...]:
    """The names of the formats, the exact ones first."""
    return tuple(_FORMATS)


def allocate(name: str, slots: int, shape: tuple[int, ...]) -> Store:
    """An empty store for `slots` deltas of one shape."""
    one = _abstract(name, shape)
    return jax.tree.map(lambda leaf: jnp.zeros((slots, *leaf.shape), leaf.dtype), one)


def slot_bytes(name: str, shape: tuple[int, ...]) -> int:
    """What one slot takes.

    >>> slot_bytes("bf16", (1, 32760, 1536)), slot_bytes("int8", (1, 32760, 1536))
    (100638720, 50450400)
    """
    return stored_bytes(_abstract(name, shape))


def write(name: str, store: Store, slot: Int[Array, ""], delta: Float[Array, "b s d"]) -> Store:
    # Behind a barrier: written from what it is computed from, XLA would hold on to a block's input, and copy it.
    kept = lax.optimization_barrier(_FORMATS[name].encode(delta))
    return jax.tree.map(lambda all_, one: lax.dynamic_update_index_in_dim(all_, one, slot, 0), store, kept)


def read(name: str, store: Store, slot: Int[Array, ""]) -> Float[Array, "b s d"]:
    """The delta of a slot, in f32."""
    return _FORMATS[name].decode(
        jax.tree.map(lambda all_: lax.dynamic_index_in_dim(all_, slot, 0, keepdims=False), store)
    )


def _abstract(name: str, shape: tuple[int, ...]) -> Any:
    return jax.eval_shape(_FORMATS[name].encode, jax.ShapeDtypeStruct(shape, jnp.float32))
