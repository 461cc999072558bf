"""How a cache keeps what blocks add to their input: one slot a (branch, layer), in 16 bits, INT8 or NVFP4.

The store is a pytree whose leaves lead with the slots, so that it rides in a scan's carry and is updated in place. INT8
has one scale per token; NVFP4 blocks of 16 with one tensor scale per slot.

A block that ran leaves its delta here, which is measured on its way (`keep`); a step that skips every block adds all
deltas of its branch (`add_all`). XLA does both for every format; our kernels (`delta_store_pallas`) keep deltas in
bf16, and add those in INT8. XLA adds in one pass, in bf16 at the speed of its bytes, of NVFP4 in one for every 20.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from sixbit_jax.dispatch import Choice, Implementation, choose
from sixbit_jax.formats import dequantize, quantize_int8, quantize_nvfp4, stored_bytes
from sixbit_jax.policies import delta_store_pallas
from sixbit_jax.policies.delta_store_pallas import StoreSpec

Store: TypeAlias = Any


class Kept(NamedTuple):
    """A block's output, the store with its delta, and what the delta is like."""

    y: Array
    store: Store
    gamma: Array  # relative to the block's input: Σ|y - x| / Σ|x|
    change: Array  # since the last one, relative to that


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


def keep(
    name: str,
    x: Float[Array, "b s d"],
    y: Float[Array, "b s d"],
    store: Store,
    slot: Int[Array, ""],
    implementation: str | None = None,
) -> Kept:
    """Keep what a block added to x to make y. Sums of magnitudes are f32, in another order by each implementation."""
    choice = choose("keep", _KEEP, _spec(name, x), implementation)
    y, store, (delta, size, change, old) = _KEEP[choice.name].run(name, x, y, store, slot)
    return Kept(y, store, delta / size, change / jnp.maximum(old, jnp.finfo(jnp.float32).tiny))


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


def explain_keep(name: str, x: jax.ShapeDtypeStruct | Array, implementation: str | None = None) -> Choice:
    """Who would keep a delta of this, and why not the ones before it.

    >>> explain_keep("int8", jax.ShapeDtypeStruct((1, 8, 512), jnp.bfloat16)).name
    'xla'
    """
    return choose("keep", _KEEP, _spec(name, x), implementation)


def _add_by_xla(name: str, x: Float[Array, "b s d"], store: Store, slots: Int[Array, " l"]) -> Float[Array, "b s d"]:
    # Unrolled it is one pass over all deltas, which does not write x thirty times. Rounding x in between would cost as
    # long as reading INT8 deltas does, and lose what is rounded. The barrier keeps passes apart, the sum in f32.
    add = lambda total, slot: (total + read(name, store, slot), None)
    total, at_once = x.astype(jnp.float32), _FORMATS[name].at_once
    for first in range(0, len(slots), at_once):
        total = lax.optimization_barrier(total) if first else total
        total = lax.scan(add, total, slots[first : first + at_once], unroll=True)[0]
    return total.astype(x.dtype)


def _keep_by_xla(
    name: str, x: Float[Array, "b s d"], y: Float[Array, "b s d"], store: Store, slot: Int[Array, ""]
) -> tuple[Array, Store, tuple[Array, ...]]:
    # x outlives y here, and the loop over layers keeps y where x lies, so XLA copies one of the two: 201 MB a block
    # (1.3B, 480p). Two layers a turn of the loop (`unroll`) need one copy for both, and twice the code. Making y in
    # a pass of its own, after all that reads x, reads again as many bytes as the copy takes.
    before = x.astype(jnp.float32)
    delta = y.astype(jnp.float32) - before
    old = read(name, store, slot)
    sums = tuple(jnp.abs(each).sum() for each in (delta, before, delta - old, old))
    # Never below zero; but now the write has to wait for the read, and XLA updates in place. Without a reason to
    # wait it keeps a copy of all deltas to read from.
    after = slot + (sums[2] + sums[3] < 0).astype(slot.dtype)
    return y, write(name, store, after, delta), sums


# In order of preference.
_ADD_ALL = {
    "pallas": Implementation(
        delta_store_pallas.supports_add, lambda name, x, store, slots: delta_store_pallas.add(x, store, slots)
    ),
    "xla": Implementation(lambda spec: None, _add_by_xla),
}
_KEEP = {
    "pallas": Implementation(
        delta_store_pallas.supports_keep, lambda name, *operands: delta_store_pallas.keep(*operands)
    ),
    "xla": Implementation(lambda spec: None, _keep_by_xla),
}


def _spec(name: str, x: jax.ShapeDtypeStruct | Array) -> StoreSpec:
    return StoreSpec(name, jnp.dtype(x.dtype).name, x.shape[-1], jax.default_backend())


def _abstract(name: str, shape: tuple[int, ...]) -> Any:
    return jax.eval_shape(_FORMATS[name].encode, jax.ShapeDtypeStruct(shape, jnp.float32))
