"""Min-max: the scales that just hold the largest values. No statistics, no search; what every other method refines."""

import dataclasses
from collections.abc import Callable

from jaxtyping import Array, Float32

from sixbit_jax.errors import nearest
from sixbit_jax.formats import QuantizedWeight, quantize_int8, quantize_nvfp4
from sixbit_jax.quantizers.base import AbstractQuantizer, Weight, per_matrix
from sixbit_jax.quantizers.grid import encode_rows, grid_between, in_rows, to_weight
from sixbit_jax.quantizers.statistics import Statistics


@dataclasses.dataclass(frozen=True)
class MinMax(AbstractQuantizer):
    """`format`: "nvfp4", "int8" (symmetric) or "int4" (asymmetric).

    `group`: integers take one scale per so many values of k, or one per row; NVFP4 has its own blocks.
    """

    format: str = "nvfp4"
    group: int | None = None

    def __post_init__(self) -> None:
        if self.format not in _FORMATS:
            raise ValueError(f'minmax: unknown format "{self.format}"; {nearest(self.format, _FORMATS)}')
        if self.format == "nvfp4" and self.group is not None:
            raise ValueError("minmax: nvfp4 has blocks of 16; group is for int8 and int4")

    def __call__(self, weight: Weight, statistics: Statistics | None = None) -> QuantizedWeight:
        return minmax(weight, statistics, self)


@per_matrix(MinMax)
def minmax(weight: Float32[Array, "n k"], statistics: Statistics | None, options: MinMax) -> QuantizedWeight:
    """Round to the nearest value of the format under min-max scales.

    >>> import jax, jax.numpy as jnp
    >>> minmax(jnp.ones((4, 32)), None, MinMax("int8")).nbytes
    144
    >>> minmax(jax.ShapeDtypeStruct((30, 4, 32), jnp.bfloat16)).weight.packed.shape
    (30, 4, 16)
    """
    return _FORMATS[options.format](weight, options.group)


def _nvfp4(weight: Float32[Array, "n k"], group: int | None) -> QuantizedWeight:
    return QuantizedWeight(quantize_nvfp4(weight))


def _int8(weight: Float32[Array, "n k"], group: int | None) -> QuantizedWeight:
    return QuantizedWeight(quantize_int8(weight, group=group))


def _int4(weight: Float32[Array, "n k"], group: int | None) -> QuantizedWeight:
    rows = in_rows(weight, group)
    grid = grid_between(rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True))
    return to_weight(encode_rows(rows, grid), grid, weight.shape)


_FORMATS: dict[str, Callable[[Array, int | None], QuantizedWeight]] = {"nvfp4": _nvfp4, "int8": _int8, "int4": _int4}
