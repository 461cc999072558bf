"""Asymmetric integer grids, one per row: what min-max and BGR choose, and what a row rounds to on them.

    value = (code - zero) · step        codes 0 to 15, zero an integer

`zero` may lie outside the codes: a row whose values all have one sign needs that.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float32

from sixbit_jax.formats import QuantizedWeight, pack_int4

LEVELS = 15
# Codes are stored signed.
_MIDDLE = 8
# A row narrower than this is constant.
_SMALLEST_WIDTH = 2.0**-100


class Grid(NamedTuple):
    step: Float32[Array, "rows 1"]
    zero: Float32[Array, "rows 1"]


def in_rows(weight: Float32[Array, "n k"], group: int | None) -> Float32[Array, "rows g"]:
    """The values that share a grid, one set a row: whole rows of the weight, or groups of k."""
    if group is None:
        return weight
    if weight.shape[1] % group:
        raise ValueError(f"axis -1 of the weight has length {weight.shape[1]}, not a multiple of {group=}")
    return weight.reshape(-1, group)


def grid_between(low: Float32[Array, "rows 1"], high: Float32[Array, "rows 1"]) -> Grid:
    """The grid from `low` to `high`. A constant row gets the grid that holds its value exactly."""
    constant = jnp.where(low == 0, 1.0, jnp.abs(low))
    step = jnp.where(high - low < _SMALLEST_WIDTH, constant, (high - low) / LEVELS)
    return Grid(step, -jnp.round(low / step))


def encode_rows(rows: Float32[Array, "rows g"], grid: Grid) -> Float32[Array, "rows g"]:
    """The codes of the nearest values."""
    return jnp.clip(jnp.round(rows / grid.step) + grid.zero, 0, LEVELS)


def decode_rows(codes: Float32[Array, "rows g"], grid: Grid) -> Float32[Array, "rows g"]:
    return (codes - grid.zero) * grid.step


def to_weight(codes: Float32[Array, "rows g"], grid: Grid, shape: tuple[int, ...]) -> QuantizedWeight:
    """The rows as one weight of `shape`, packed."""
    scale, zero = (part.reshape(shape[0], -1) for part in grid)
    packed = pack_int4((codes - _MIDDLE).astype(jnp.int8).reshape(shape), scale)
    return QuantizedWeight(packed, zero=(_MIDDLE - zero) * scale)
