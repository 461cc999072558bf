"""The static facts of a product, which decide what implementation can run it."""

import dataclasses
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from sixbit_jax.formats import Int4Tensor, Int8Tensor, NVFP4Tensor, QuantizedTensor, QuantizedWeight
from sixbit_jax.routes import ACTIVATION_BITS

# What `linear` takes for w; its `api` wraps a bare tensor, so that implementations see an array or a QuantizedWeight.
Weight: TypeAlias = jax.Array | QuantizedTensor | QuantizedWeight

FORMATS: dict[type, str] = {NVFP4Tensor: "nvfp4", Int8Tensor: "int8", Int4Tensor: "int4"}
ACTIVATIONS = tuple(name for name in ACTIVATION_BITS if name is not None)
# Formats whose codes meet the weight's as integers; the weight is expanded to INT8 for them.
INTEGERS = ("int8", "int4")


@dataclasses.dataclass(frozen=True)
class LinearSpec:
    """One product: rows, sizes, number formats, what surrounds it and where it runs.

    `x` is a dtype, `w` a dtype or the name of a format. The fields behind `platform` are those of a `QuantizedWeight`:
    an implementation that does not know one of them has to refuse a spec that sets it.
    """

    m: int
    k: int
    n: int
    x: str
    w: str
    act: str | None
    platform: str
    w_groups: int = 1  # scales per row of an int8 or int4 weight
    act_group: int | None = None  # values of k that share an activation scale
    smooth: bool = False
    rotated: int | None = None
    zero_groups: int = 0  # offsets per row
    rank: int = 0  # of the low-rank branch

    @property
    def quantized(self) -> bool:
        return self.w in FORMATS.values()


def describe(x: Any, w: Any, act: str | None) -> LinearSpec:
    """The spec of `linear(x, w, act=act)`; operands may be abstract."""
    rows = 1
    for size in x.shape[:-1]:
        rows *= size
    shared = (rows, w.shape[-1], w.shape[-2], jnp.dtype(x.dtype).name)
    if not isinstance(w, QuantizedWeight):
        return LinearSpec(*shared, jnp.dtype(w.dtype).name, act, jax.default_backend())
    return LinearSpec(
        *shared,
        FORMATS[type(w.weight)],
        act,
        jax.default_backend(),
        w_groups=1 if isinstance(w.weight, NVFP4Tensor) else w.weight.scale.shape[-1],
        act_group=w.act_group,
        smooth=w.smooth is not None,
        rotated=w.rotated,
        zero_groups=0 if w.zero is None else w.zero.shape[-1],
        rank=0 if w.low_rank is None else w.low_rank[0].shape[-2],
    )


def wrap(w: Any) -> Any:
    """A bare quantized tensor as a `QuantizedWeight`; everything else as it is."""
    return QuantizedWeight(w) if type(w) in FORMATS else w
