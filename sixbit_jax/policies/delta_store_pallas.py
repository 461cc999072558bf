"""What a cache of deltas does, by our kernels on a Hopper GPU.

    keep    a block that ran: its output less its input, measured, rounded to bf16 and kept, in one pass
    add     a step that skips every block: all INT8 deltas, in one pass

XLA takes eight passes for the one, and reads four bytes a thread and layer for the other, the kernel sixteen. Kernels
are imported where they run: Mosaic GPU takes a second to import, and a CPU has no use for it.
"""

import dataclasses

from jaxtyping import Array, Float, Int

from pallas_kernels import hopper
from sixbit_jax.formats import Int8Tensor

# What a warp takes of a token.
ADD_COLUMNS = 512
KEEP_COLUMNS = 256


@dataclasses.dataclass(frozen=True)
class StoreSpec:
    """The static facts that decide whether an implementation can run. `x` is a dtype, `d` its width."""

    cache_format: str
    x: str
    d: int
    platform: str


def supports_add(spec: StoreSpec) -> str | None:
    return _refusal(spec, "int8", ADD_COLUMNS)


def supports_keep(spec: StoreSpec) -> str | None:
    return _refusal(spec, "bf16", KEEP_COLUMNS)


def _refusal(spec: StoreSpec, cache_format: str, columns: int) -> str | None:
    if reason := hopper.refusal(spec.platform):
        return reason
    if spec.cache_format != cache_format:
        return f"the deltas are {spec.cache_format}, the kernel is for {cache_format}"
    if spec.x != "bfloat16":
        return f"x is {spec.x}, the kernel reads bfloat16"
    return f"x is {spec.d} wide, expected a multiple of {columns}" if spec.d % columns else None


def add(x: Float[Array, "b s d"], store: Int8Tensor, slots: Int[Array, " l"]) -> Float[Array, "b s d"]:
    from pallas_kernels.add_deltas import add_deltas

    rows = x.reshape(-1, x.shape[-1])
    codes = store.data.reshape(-1, *rows.shape)
    return add_deltas(rows, codes, store.scale.reshape(codes.shape[:2]), slots).reshape(x.shape)


def keep(
    x: Float[Array, "b s d"], y: Float[Array, "b s d"], store: Float[Array, "n b s d"], slot: Int[Array, ""]
) -> tuple[Float[Array, "b s d"], Float[Array, "n b s d"], tuple[Float[Array, ""], ...]]:
    """y, the store, and Σ of |y - x|, of |x|, of the delta less the old one, and of that."""
    from pallas_kernels.keep_delta import keep_delta

    rows = lambda each: each.reshape(-1, each.shape[-1])
    y, kept, *sums = keep_delta(rows(x), rows(y), store.reshape(len(store), -1, x.shape[-1]), slot)
    return y.reshape(x.shape), kept.reshape(store.shape), tuple(sums)
