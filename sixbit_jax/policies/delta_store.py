"""How a cache keeps what blocks add to their input: one slot a (branch, layer), in 16 bits, INT8 or NVFP4.

The store is a pytree whose leaves lead with the slots, so that it rides in a scan's carry and is updated in place. INT8
has one scale per token; NVFP4 blocks of 16 with one tensor scale per slot.

A step that skips every block adds all deltas of its branch (`add_all`). XLA makes one pass of that over the deltas, in
bf16 at the speed of its bytes, of NVFP4 a pass for every 20; for INT8 there is a kernel of ours (`delta_store_pallas`).
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from sixbit_jax.dispatch import Choice, Implementation, choose
from sixbit_jax.formats import dequantize, quantize_int8, quantize_nvfp4, stored_bytes
from sixbit_jax.policies import delta_store_pallas
from sixbit_jax.policies.delta_store_pallas import AddSpec

Store: TypeAlias = Any


@dataclasses.dataclass(frozen=True)
class _Format:
    encode: Callable[[Array], Any]
    decode: Callable[[Any], Array]
    at_once: int = sys.maxsize  # deltas that XLA adds in one pass


_FORMATS = {
    "f32": _Format(lambda delta: delta.astype(jnp.float32), lambda kept: kept),
    "bf16": _Format(lambda delta: delta.astype(jnp.bfloat16), lambda kept: kept.astype(jnp.float32)),
    "int8": _Format(quantize_int8, dequantize),
    # A pass of XLA has at most 96 operands and outputs. As it is put together, a delta of NVFP4 is several; of too many
    # their codes, half a byte each, are written out as one to four bytes.
    "nvfp4": _Format(quantize_nvfp4, dequantize, at_once=20),
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


def add_all(
    name: str, x: Float[Array, "b s d"], store: Store, slots: Int[Array, " l"], implementation: str | None = None
) -> Float[Array, "b s d"]:
    """x and the deltas of these slots, added in their order in f32 and rounded once.

    `implementation` names one that must run or raise; `None` takes the first that can. The kernel rounds
    a product and its sum together, XLA as its compiler likes: that is 2⁻²⁴ of each product and of the sums after it.
    """
    choice = choose("add_all", _ADD_ALL, _spec(name, x), implementation)
    return _ADD_ALL[choice.name].run(name, x, store, slots)


def explain(name: str, x: jax.ShapeDtypeStruct | Array, implementation: str | None = None) -> Choice:
    """Who would add deltas to this, and why not the ones before it.

    >>> explain("bf16", jax.ShapeDtypeStruct((1, 8, 512), jnp.bfloat16)).name
    'xla'
    """
    return choose("add_all", _ADD_ALL, _spec(name, x), implementation)


def _add_by_xla(name: str, x: Float[Array, "b s d"], store: Store, slots: Int[Array, " l"]) -> Float[Array, "b s d"]:
    # Unrolled it is one pass over all deltas, which does not write x thirty times. Rounding x in between would cost as
    # long as reading INT8 deltas does, and lose what is rounded. The barrier keeps passes apart, the sum in f32.
    add = lambda total, slot: (total + read(name, store, slot), None)
    total, at_once = x.astype(jnp.float32), _FORMATS[name].at_once
    for first in range(0, len(slots), at_once):
        total = lax.optimization_barrier(total) if first else total
        total = lax.scan(add, total, slots[first : first + at_once], unroll=True)[0]
    return total.astype(x.dtype)


# In order of preference.
_ADD_ALL = {
    "pallas": Implementation(
        delta_store_pallas.supports, lambda name, x, store, slots: delta_store_pallas.add(x, store, slots)
    ),
    "xla": Implementation(lambda spec: None, _add_by_xla),
}


def _spec(name: str, x: jax.ShapeDtypeStruct | Array) -> AddSpec:
    return AddSpec(name, jnp.dtype(x.dtype).name, x.shape[-1], jax.default_backend())


def _abstract(name: str, shape: tuple[int, ...]) -> Any:
    return jax.eval_shape(_FORMATS[name].encode, jax.ShapeDtypeStruct(shape, jnp.float32))
