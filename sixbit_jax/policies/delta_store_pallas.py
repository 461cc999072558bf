"""All INT8 deltas of a step that skips every block, added by our kernel on a Hopper GPU.

XLA reads four bytes a thread and layer; the kernel sixteen. The kernel is imported where it runs: Mosaic GPU takes a
second to import, and a CPU has no use for it.
"""

import dataclasses

from jaxtyping import Array, Float, Int

from pallas_kernels import hopper
from sixbit_jax.formats import Int8Tensor

COLUMNS = 512  # a warp takes of a token


@dataclasses.dataclass(frozen=True)
class AddSpec:
    """The static facts that decide whether an implementation can run. `x` is a dtype, `d` its width."""

    cache_format: str
    x: str
    d: int
    platform: str


def supports(spec: AddSpec) -> str | None:
    if reason := hopper.refusal(spec.platform):
        return reason
    if spec.cache_format != "int8":
        return f"the deltas are {spec.cache_format}, the kernel reads int8"
    if spec.x != "bfloat16":
        return f"x is {spec.x}, the kernel reads bfloat16"
    return f"x is {spec.d} wide, expected a multiple of {COLUMNS}" if spec.d % COLUMNS else None


def add(x: Float[Array, "b s d"], store: Int8Tensor, slots: Int[Array, " l"]) -> Float[Array, "b s d"]:
    from pallas_kernels.add_deltas import add_deltas

    rows = x.reshape(-1, x.shape[-1])
    codes = store.data.reshape(-1, *rows.shape)
    return add_deltas(rows, codes, store.scale.reshape(codes.shape[:2]), slots).reshape(x.shape)
