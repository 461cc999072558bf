"""Large frames in overlapping tiles: memory is that of one tile, and seams fade linearly across the overlap.

Each tile is coded by itself over its whole length in time. Tiles of one shape share one compiled program.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from sixbit_jax.errors import UserError

Video: TypeAlias = Float[Array, "b t h w c"]
# Tiles have their own heights and widths, and before and after coding their own frames and channels.
Tile: TypeAlias = Float[Array, "b _ _ _ _"]
Corner: TypeAlias = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Height and width of a tile and the distance between the corners of two neighbours, in pixels."""

    size: tuple[int, int] = (256, 256)
    stride: tuple[int, int] = (192, 192)

    def __post_init__(self) -> None:
        for size, stride in zip(self.size, self.stride, strict=True):
            if not 0 < stride <= size:
                raise UserError(
                    f"tiling: tiles of {size} px cannot stand {stride} px apart; use a stride of 1 to {size}"
                )

    def needed(self, height: int, width: int) -> bool:
        """Whether a frame is larger than a tile."""
        return height > self.size[0] or width > self.size[1]

    def shrink(self, scale: int) -> "Tiling":
        """The same tiles on a grid with `scale` pixels a cell."""
        for name, value in (("size", self.size), ("stride", self.stride)):
            if any(pixels % scale for pixels in value):
                nearest = tuple(max(scale, round(pixels / scale) * scale) for pixels in value)
                raise UserError(f"tiling: {name} {value} is not a multiple of {scale}; the nearest is {nearest}")
        return Tiling(_divide(self.size, scale), _divide(self.stride, scale))


def map_tiles(code: Callable[[Tile], Tile], x: Video, source: Tiling, result: Tiling) -> Float[Array, "b u y x n"]:
    """Apply `code` to every tile of `x` and blend. `source`, `result`: the tiles on the grids of input and output."""
    rows, columns = (range(0, extent, stride) for extent, stride in zip(x.shape[2:4], source.stride, strict=True))
    tiles = _code_tiles(code, x, [(top, left) for top in rows for left in columns], source.size)
    return _assemble([[tiles[top, left] for left in columns] for top in rows], result)


def _code_tiles(
    code: Callable[[Tile], Tile], x: Video, corners: list[Corner], size: tuple[int, int]
) -> dict[Corner, Tile]:
    """Tiles at the far edges are cut off by the frame, which makes a few shapes: each is one `lax.map` over corners."""
    b, t, height, width, c = x.shape
    by_shape: dict[tuple[int, int], list[Corner]] = {}
    for top, left in corners:
        shape = (min(size[0], height - top), min(size[1], width - left))
        by_shape.setdefault(shape, []).append((top, left))
    tiles: dict[Corner, Tile] = {}
    for shape, members in by_shape.items():
        cut = functools.partial(_cut, x, (b, t, *shape, c))
        coded = lax.map(lambda corner, cut=cut: code(cut(corner)), jnp.array(members, jnp.int32))
        tiles |= dict(zip(members, coded, strict=True))
    return tiles


def _cut(x: Video, shape: tuple[int, ...], corner: Int[Array, " 2"]) -> Tile:
    return lax.dynamic_slice(x, (0, 0, corner[0], corner[1], 0), shape)


def _assemble(rows: list[list[Tile]], tiling: Tiling) -> Tile:
    """Blend each tile with the finished ones above and then to the left, and lay them side by side.

    Where four tiles meet, the result depends on this order; it is the reference's.
    """
    overlap = [size - stride for size, stride in zip(tiling.size, tiling.stride, strict=True)]
    bands = []
    above: list[Tile] = []
    for row in rows:
        done: list[Tile] = []
        for column, tile in enumerate(row):
            if above:
                tile = _fade(above[column], tile, overlap[0], axis=2)
            if done:
                tile = _fade(done[-1], tile, overlap[1], axis=3)
            done.append(tile)
        above = done
        bands.append(jnp.concatenate([tile[:, :, : tiling.stride[0], : tiling.stride[1]] for tile in done], axis=3))
    return jnp.concatenate(bands, axis=2)


def _fade(before: Tile, tile: Tile, overlap: int, axis: int) -> Tile:
    """Replace the start of `tile` by a linear passage from the end of `before`."""
    overlap = min(overlap, before.shape[axis], tile.shape[axis])
    if overlap == 0:
        return tile
    end = lax.slice_in_dim(before, before.shape[axis] - overlap, None, axis=axis)
    start = lax.slice_in_dim(tile, 0, overlap, axis=axis)
    ramp = jnp.arange(overlap, dtype=jnp.float32) / overlap
    ramp = jnp.expand_dims(ramp, [i for i in range(tile.ndim) if i != axis])
    mixed = end.astype(jnp.float32) * (1 - ramp) + start.astype(jnp.float32) * ramp
    return jnp.concatenate([mixed.astype(tile.dtype), lax.slice_in_dim(tile, overlap, None, axis=axis)], axis=axis)


def _divide(pair: tuple[int, int], scale: int) -> tuple[int, int]:
    return pair[0] // scale, pair[1] // scale
