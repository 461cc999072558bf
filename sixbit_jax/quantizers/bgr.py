"""BGR, bounded-init grid refinement (DVD-Quant, arXiv 2505.18663): data-free asymmetric 4-bit weights.

Min-max wastes its sixteen levels on the few largest values. BGR draws both bounds of a row inwards step by step, fits
the grid of every step to its codes by least squares and the codes to the grid again, and keeps the best grid of each
row. The first candidate is min-max itself, so no row is ever worse than that.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float32

from sixbit_jax.formats import QuantizedWeight
from sixbit_jax.quantizers.base import AbstractQuantizer, Weight, per_matrix
from sixbit_jax.quantizers.grid import Grid, decode_rows, encode_rows, grid_between, in_rows, to_weight
from sixbit_jax.quantizers.statistics import Statistics


@dataclasses.dataclass(frozen=True)
class BGR(AbstractQuantizer):
    """`bounds`: into how many steps a row's range is cut; both bounds move by the same step, until they would meet.

    `refinements`: rounds of least squares at every step, at most; they end when no row improves. `group`: one grid
    per so many values of k instead of one per row.
    """

    bounds: int = 100
    refinements: int = 10
    group: int | None = None

    def __post_init__(self) -> None:
        if self.bounds < 1 or self.refinements < 0:
            raise ValueError(f"bgr: bounds={self.bounds} must be positive, refinements={self.refinements} not negative")

    def __call__(self, weight: Weight, statistics: Statistics | None = None) -> QuantizedWeight:
        return bgr(weight, statistics, self)


@per_matrix(BGR)
def bgr(weight: Float32[Array, "n k"], statistics: Statistics | None, options: BGR) -> QuantizedWeight:
    """Codes 0 to 15 under the grid of each row with the least squared error found.

    >>> import jax
    >>> from sixbit_jax.formats import effective_weight
    >>> from sixbit_jax.quantizers import MinMax
    >>> w = jax.random.normal(jax.random.key(0), (8, 256))
    >>> error = lambda method: float(((effective_weight(method(w)) - w) ** 2).mean())
    >>> error(BGR()) < 0.95 * error(MinMax("int4"))
    True
    """
    rows = in_rows(weight, options.group)
    grid = _search(rows, options)
    return to_weight(encode_rows(rows, grid), grid, weight.shape)


class _Fit(NamedTuple):
    """A grid per row and the squared error that it leaves."""

    grid: Grid
    error: Float32[Array, "rows 1"]


def _search(rows: Float32[Array, "rows g"], options: BGR) -> Grid:
    low, high = rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True)
    # The width of a row whose largest values are ± the f32 maximum would overflow.
    step = high / options.bounds - low / options.bounds

    def try_bounds(best: _Fit, index: Array) -> tuple[_Fit, None]:
        start = _fit(rows, grid_between(low + index * step, high - index * step))
        return _keep(best, _refine(rows, start, options.refinements)), None

    first = _refine(rows, _fit(rows, grid_between(low, high)), options.refinements)
    inwards = jnp.arange(1, (options.bounds + 1) // 2, dtype=jnp.float32)
    best, _ = lax.scan(try_bounds, first, inwards)
    return best.grid


def _refine(rows: Float32[Array, "rows g"], start: _Fit, rounds: int) -> _Fit:
    """Alternate between the best grid for the codes and the best codes for the grid, while any row improves."""

    def improve(carry: tuple[_Fit, Bool[Array, ""], Array]) -> tuple[_Fit, Bool[Array, ""], Array]:
        fit, _, count = carry
        better = _keep(fit, _fit(rows, _least_squares(rows, fit.grid)))
        return better, jnp.any(better.error < fit.error), count + 1

    going = lambda carry: carry[1] & (carry[2] < rounds)
    fit, _, _ = lax.while_loop(going, improve, (start, jnp.bool_(True), jnp.int32(0)))
    return fit


def _least_squares(rows: Float32[Array, "rows g"], grid: Grid) -> Grid:
    """The step that fits the codes best, then the zero point that centres the rest."""
    codes = encode_rows(rows, grid)
    centred = codes - grid.zero
    mean = lambda x: jnp.mean(x, axis=1, keepdims=True)
    step = mean(centred * rows) / mean(centred * centred)
    # A row of one code at its zero point gives 0 / 0; a step that is not positive would turn the grid over.
    step = jnp.where(step > 0, step, grid.step)
    return Grid(step, jnp.round(mean(codes) - mean(rows) / step))


def _fit(rows: Float32[Array, "rows g"], grid: Grid) -> _Fit:
    values = decode_rows(encode_rows(rows, grid), grid)
    return _Fit(grid, jnp.sum((rows - values) ** 2, axis=1, keepdims=True))


def _keep(old: _Fit, new: _Fit) -> _Fit:
    """Row by row the fit with the smaller error; a NaN never wins."""
    wins = new.error < old.error
    return jax.tree.map(lambda a, b: jnp.where(wins, a, b), new, old)
