"""GPTQ (arXiv 2210.17323): round the columns one after another, and let those to come make good each one's error.

It changes codes, not scales: those come from another method, whose grid may be NVFP4, INT8 or INT4. With the Hessian
`E[x xᵀ]` of the layer's input the result minimises the error of the outputs rather than that of the weight.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32

from sixbit_jax.formats import (
    Int4Tensor,
    Int8Tensor,
    NVFP4Tensor,
    QuantizedWeight,
    decode_e2m1,
    encode_e2m1,
    pack_int4,
    pack_nibbles,
    per_value,
    value_scales,
)
from sixbit_jax.quantizers.base import AbstractQuantizer, Weight, per_matrix
from sixbit_jax.quantizers.minmax import MinMax
from sixbit_jax.quantizers.statistics import Statistics


@dataclasses.dataclass(frozen=True)
class GPTQ(AbstractQuantizer):
    """`damping`: added to the Hessian's diagonal, as a share of its mean.

    `columns`: how many are rounded before their errors reach the rest (speed only). `weights`: where the scales come
    from; a method that only rounds.
    """

    damping: float = 0.01
    columns: int = 128
    weights: AbstractQuantizer = MinMax()

    def __post_init__(self) -> None:
        if self.damping <= 0:
            raise ValueError(f"gptq: damping={self.damping} must be positive")

    def __call__(self, weight: Weight, statistics: Statistics | None = None) -> QuantizedWeight:
        return gptq(weight, statistics, self)


@per_matrix(GPTQ)
def gptq(weight: Float32[Array, "n k"], statistics: Statistics | None, options: GPTQ) -> QuantizedWeight:
    """Round against the Hessian. Needs `statistics.hessian`.

    >>> import jax
    >>> from sixbit_jax.formats import effective_weight
    >>> from sixbit_jax.quantizers import observe
    >>> w, x = jax.random.normal(jax.random.key(0), (16, 64)), jax.random.normal(jax.random.key(1), (512, 64)) + 1
    >>> error = lambda q: float(((x @ (effective_weight(q) - w).T) ** 2).mean())
    >>> error(gptq(w, observe(x, hessian=True))) < 0.6 * error(MinMax()(w))
    True
    """
    if statistics is None or statistics.hessian is None:
        raise ValueError("gptq: needs statistics.hessian; calibrate with it, or take a data-free method")
    start = options.weights(weight, statistics)
    if start.smooth is not None or start.low_rank is not None or start.rotated is not None:
        raise ValueError("gptq: its inner method must only round; put smoothing, branch and rotation around gptq")
    grid, step = _GRIDS[type(start.weight)], value_scales(start.weight)
    offset = jnp.zeros_like(weight) if start.zero is None else per_value(start.zero, weight.shape)
    factor = _inverse_factor(statistics.hessian, options.damping)
    units = _round_columns(weight, step, offset, factor, grid.snap, options.columns)
    return dataclasses.replace(start, weight=grid.rebuild(start.weight, units))


class _Grid(NamedTuple):
    """What a format's codes stand for, in units of the scale: round to it, and put new codes under the old scales."""

    snap: Callable[[Array], Array]
    rebuild: Callable[[Any, Array], Any]


_GRIDS: dict[type, _Grid] = {
    NVFP4Tensor: _Grid(
        lambda units: decode_e2m1(encode_e2m1(units)),
        lambda t, units: dataclasses.replace(t, packed=pack_nibbles(encode_e2m1(units))),
    ),
    Int8Tensor: _Grid(
        lambda units: jnp.clip(jnp.round(units), -127, 127),
        lambda t, units: Int8Tensor(units.astype(jnp.int8), t.scale),
    ),
    Int4Tensor: _Grid(
        lambda units: jnp.clip(jnp.round(units), -8, 7),
        lambda t, units: pack_int4(units.astype(jnp.int8), t.scale),
    ),
}


def _inverse_factor(hessian: Float32[Array, "k k"], damping: float) -> Float32[Array, "k k"]:
    """The upper triangular U with `H⁻¹ = Uᵀ U`: row j says how the columns after j make good an error in column j."""
    mean = jnp.mean(jnp.diagonal(hessian))
    size = hessian.shape[0]
    # Inputs that were always zero leave no Hessian: then every error counts alike.
    damped = hessian + jnp.where(mean > 0, damping * mean, 1.0) * jnp.eye(size)
    # H = R Rᵀ with R upper triangular, from the lower Cholesky factor of H read backwards; then U = R⁻¹. One
    # factorisation, and the inverse of H itself is never formed.
    backwards = jnp.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    return jax.scipy.linalg.solve_triangular(backwards, jnp.eye(size), lower=False)


def _round_columns(
    weight: Float32[Array, "n k"],
    step: Float32[Array, "n k"],
    offset: Float32[Array, "n k"],
    factor: Float32[Array, "k k"],
    snap: Callable[[Array], Array],
    columns: int,
) -> Float32[Array, "n k"]:
    """The snapped units of every column."""
    width = math.gcd(weight.shape[1], columns)

    def round_some(weight: Array, start: Array) -> tuple[Array, Array]:
        cut = lambda x: lax.dynamic_slice_in_dim(x, start, width, axis=1)
        rows = lax.dynamic_slice_in_dim(factor, start, width)
        units, errors = _round_inside(cut(weight), cut(step), cut(offset), cut(rows), snap)
        later = jnp.arange(weight.shape[1])[None] >= start + width
        spill = jnp.matmul(errors, jnp.where(later, rows, 0.0), precision=lax.Precision.HIGHEST)
        return weight - spill, units

    _, units = lax.scan(round_some, weight, jnp.arange(0, weight.shape[1], width))
    return jnp.moveaxis(units, 0, 1).reshape(weight.shape)


def _round_inside(
    weight: Float32[Array, "n c"],
    step: Float32[Array, "n c"],
    offset: Float32[Array, "n c"],
    factor: Float32[Array, "c c"],
    snap: Callable[[Array], Array],
) -> tuple[Float32[Array, "n c"], Float32[Array, "n c"]]:
    """The units of a few columns, and each column's error over its diagonal entry."""

    def round_one(weight: Array, column: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        j, step, offset, row = column
        units = snap((weight[:, j] - offset) / step)
        error = (weight[:, j] - units * step - offset) / row[j]
        return weight - error[:, None] * row[None], (units, error)

    _, (units, errors) = lax.scan(round_one, weight, (jnp.arange(weight.shape[1]), step.T, offset.T, factor))
    return units.T, errors.T
