"""Activations to INT8 in one pass over memory, on Hopper.

Rotated groups of 128 are the rows of a matrix product: a token of 5120 is 40 groups, and x a matrix of (groups, 128)
times Sylvester's matrix of ±1. So a CTA takes `rows` rows of x (8 tokens, say), and works in tiles of 64 groups: tile
row `rows · g + r` is group g of row r. Shared memory holds all tiles of the block, for what one scale a token needs:

1. load the tiles; if there is a norm, an activation or a per-channel factor, apply it and write the tile back;
2. rotate each tile on the tensor cores and keep the largest magnitude of every tile row;
3. reduce those over the groups of each token, across tiles and warpgroups;
4. rotate again (cheaper than keeping f32 results), round to codes, store.

With one scale per 128 steps 2 to 4 need no reduction, and each tile is rotated once.

A product with the 64-wide matrix and one butterfly is half the tensor work of a product with the 128-wide one:
`[a + b, a - b]` for `a = left · H64`, `b = right · H64`.

Long rows do not fit eight at a time. They are cut into `split` parts, and a block takes 8 parts of 8 / split tokens.
"""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.int8_matmul.emulation import gelu_tanh
from pallas_kernels.mosaic import launch_grid, load, swizzled
from pallas_kernels.quantize_rows import channels
from pallas_kernels.quantize_rows.config import GROUP, TILE, QuantizeRowsConfig
from pallas_kernels.quantize_rows.spec import Spec, code_scale, moments, rounded_to_codes, signs

HALF = GROUP // 2
ROWS = plgpu.Layout.WGMMA.reduce(1)
PARTS = 2  # a half is rotated in: it keeps registers below 128, and two CTAs on an SM
WIDTH = HALF // PARTS
PIECE = (TILE, WIDTH)


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What the kernel leaves, in the order it is computed in; `api` puts it into the shape callers want."""

    codes: Any
    scale: Any
    total: Any
    largest: Any
    block_scale: Any = None


def launch(kernel: "Kernel", x: Array, factor: Array | None, offset: Array | None, interpret: Any) -> tuple[Array, ...]:
    """Codes; scale, Σ|x| and max|x| f32 (m,), or scale (blocks, tiles, 64) if grouped; then what else there is.

    factor and offset f32 (k,), both or neither: with `spec.affine`.
    """
    vector = jax.ShapeDtypeStruct((kernel.m,), jnp.float32)
    scale = jax.ShapeDtypeStruct((kernel.blocks, kernel.tiles, TILE), jnp.float32) if kernel.spec.grouped else vector
    call = launch_grid(
        kernel,
        (kernel.codes_type, scale, vector, vector, *kernel.more_types),
        grid={"block": kernel.blocks},
        warpgroups=kernel.config.warpgroups,
        interpret=interpret,
    )
    vectors = [kernel.by_part(vector) for vector in (factor, offset)] if kernel.spec.affine else []
    return call(x.reshape(kernel.m, kernel.k), jnp.asarray(kernel.matrix, jnp.bfloat16), *vectors)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The kernel body. m and k are those of the view of x in parts of rows."""

    m: int
    k: int
    spec: Spec
    config: QuantizeRowsConfig

    more_types: ClassVar[tuple[Any, ...]] = ()

    @property
    def codes_type(self) -> Any:
        return jax.ShapeDtypeStruct((self.m, self.k), jnp.int8)

    @property
    def matrix(self) -> np.ndarray:
        """Without a rotation the product still serves: it is exact, and brings x into the accumulators' layout."""
        return signs(HALF) if self.spec.rotate else np.eye(HALF)

    def codes_scratch(self) -> Any:
        shape = (self.config.warpgroups, self.config.slots, TILE, GROUP)
        return plgpu.SMEM(shape, jnp.int8, transforms=swizzled(WIDTH, jnp.int8))

    @property
    def blocks(self) -> int:
        return -(-self.m // self.config.rows)

    @property
    def tile_groups(self) -> int:
        return TILE // self.config.rows

    @property
    def tiles(self) -> int:
        return -(-(self.k // GROUP) // self.tile_groups)

    def by_part(self, vector: Array) -> Array:
        """A vector over channels, each part of it padded with zeros to whole tiles."""
        parts = vector.reshape(self.config.split, self.k)
        return jnp.pad(parts, ((0, 0), (0, self._padded_k - self.k))).reshape(-1)

    @property
    def _padded_k(self) -> int:
        return self.tiles * self.tile_groups * GROUP

    def __call__(self, x_gmem, matrix_gmem, *rest) -> None:
        channels_gmem, results = (rest[:2], rest[2:]) if self.spec.affine else ((), rest)
        body = functools.partial(self._block, x_gmem, matrix_gmem, channels_gmem, Outputs(*results))
        pl.run_scoped(body, **self.scratch, collective_axes="wg")

    @property
    def scratch(self) -> dict[str, Any]:
        wgs = self.config.warpgroups
        return dict(
            x_smem=plgpu.SMEM((self.tiles, TILE, GROUP), jnp.bfloat16, transforms=swizzled(HALF, jnp.bfloat16)),
            matrix_smem=plgpu.SMEM((HALF, HALF), jnp.bfloat16, transforms=swizzled(HALF, jnp.bfloat16)),
            codes_smem=self.codes_scratch(),
            # A reduction over groups reads windows that run over the end, so vectors are written twice.
            vectors_smem=plgpu.SMEM((wgs, self._exchanged, 2 * TILE), jnp.float32),
            out_smem=plgpu.SMEM((wgs, 3, TILE), jnp.float32),
            arrived=plgpu.Barrier(num_arrivals=self.tile_groups, num_barriers=self.tiles),
            matrix_arrived=plgpu.Barrier(),
            met=plgpu.Barrier(num_arrivals=wgs, num_barriers=2),
        )

    @property
    def _exchanged(self) -> int:
        """Vectors that meet: three at the end, two for a norm before, one to join parts."""
        return 6 if self.spec.norm else 4

    def _block(self, x_gmem, matrix_gmem, channels_gmem, outputs: Outputs, **scratch) -> None:
        wg, block = lax.axis_index("wg"), lax.axis_index("block")

        @pl.when(wg == 0)
        def _load_matrix():
            plgpu.copy_gmem_to_smem(matrix_gmem, scratch["matrix_smem"], scratch["matrix_arrived"])

        self._each_tile(wg, lambda tile, _: self._load(x_gmem, block, tile, scratch), None)
        plgpu.barrier_wait(scratch["matrix_arrived"])
        row_moments = self._moments(wg, scratch) if self.spec.norm else None
        prepare = functools.partial(self._prepare, moments=row_moments, channels_gmem=channels_gmem, scratch=scratch)
        if self.spec.grouped:
            self._quantize_grouped(wg, block, prepare, outputs, scratch)
        else:
            self._quantize_tokens(wg, block, prepare, outputs, scratch)
        plgpu.wait_smem_to_gmem(0)

    def _each_tile(self, wg, visit, carry):
        """Visit this warpgroup's tiles: every `warpgroups`-th."""
        wgs = self.config.warpgroups
        mine = lax.div(self.tiles - wg + wgs - 1, wgs)
        return lax.fori_loop(0, mine, lambda i, carry: visit(i * wgs + wg, carry), carry)

    def _pieces(self, tile):
        """For each group of a tile: its index in the tile, its rows there, its columns in x."""
        for g in range(self.tile_groups):
            yield pl.ds(g * self.config.rows, self.config.rows), pl.ds((tile * self.tile_groups + g) * GROUP, GROUP)

    def _load(self, x_gmem, block, tile, scratch) -> None:
        rows = pl.ds(block * self.config.rows, self.config.rows)
        for inside, columns in self._pieces(tile):
            target = scratch["x_smem"].at[tile, inside]
            plgpu.copy_gmem_to_smem(x_gmem.at[rows, columns], target, scratch["arrived"].at[tile])

    def _await(self, tile, scratch) -> None:
        """With a norm every tile has been waited for already, and a barrier counts its waits."""
        if not self.spec.norm:
            plgpu.barrier_wait(scratch["arrived"].at[tile])

    # One scale a token.

    def _quantize_tokens(self, wg, block, prepare, outputs: Outputs, scratch) -> None:
        zero = row_zeros()

        def measure(tile, carry):
            amax, total, largest = carry
            self._await(tile, scratch)
            tile_total, tile_largest = prepare(tile)
            amax = jnp.maximum(amax, self._amax(tile, scratch))
            return amax, total + tile_total, jnp.maximum(largest, tile_largest)

        amax, total, largest = self._each_tile(wg, measure, (zero, zero, zero))
        amax, total, largest = self._reduce(
            wg, 1, ((amax, jnp.maximum), (total, jnp.add), (largest, jnp.maximum)), scratch
        )
        scale, inverse = code_scale(amax, self.spec)

        def encode(tile, slot):
            self._store(wg, block, tile, slot, inverse, outputs, scratch)
            return lax.rem(slot + 1, self.config.slots)

        self._each_tile(wg, encode, jnp.int32(0))
        self._store_vectors(wg, block, outputs, scale, total, largest, scratch)

    def _store_vectors(self, wg, block, outputs: Outputs, scale, total, largest, scratch) -> None:
        @pl.when(wg == 0)
        def _store():
            out_smem = scratch["out_smem"].at[0]
            pairs = ((outputs.scale, scale), (outputs.total, total), (outputs.largest, largest))
            pairs = [(target, value) for target, value in pairs if value is not None]
            for index, (_, value) in enumerate(pairs):
                out_smem[index] = value
            plgpu.commit_smem()
            rows = self.config.rows  # then they repeat
            for index, (target, _) in enumerate(pairs):
                plgpu.copy_smem_to_gmem(out_smem.at[index, pl.ds(0, rows)], target.at[pl.ds(block * rows, rows)])

    # One scale per 128.

    def _quantize_grouped(self, wg, block, prepare, outputs: Outputs, scratch) -> None:
        zero = row_zeros()
        scale_smem = scratch["vectors_smem"].at[wg, 0, pl.ds(0, TILE)]

        def encode(tile, carry):
            slot, total, largest = carry
            self._await(tile, scratch)
            tile_total, tile_largest = prepare(tile)
            scale, inverse = code_scale(self._amax(tile, scratch), self.spec)
            self._store(wg, block, tile, slot, inverse, outputs, scratch)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            scale_smem[...] = scale
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(scale_smem, outputs.scale.at[block, tile])
            return lax.rem(slot + 1, self.config.slots), total + tile_total, jnp.maximum(largest, tile_largest)

        _, total, largest = self._each_tile(wg, encode, (jnp.int32(0), zero, zero))
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        total, largest = self._reduce(wg, 1, ((total, jnp.add), (largest, jnp.maximum)), scratch)
        self._store_vectors(wg, block, outputs, None, total, largest, scratch)

    # Tiles.

    def _moments(self, wg, scratch) -> tuple[Array, Array]:
        """What a norm subtracts from each row and multiplies it by: mean (0 for RMS) and 1 / deviation."""

        def measure(tile, carry):
            plgpu.barrier_wait(scratch["arrived"].at[tile])

            def add(half, sums):
                x = load(self._half(tile, half, scratch), plgpu.Layout.WGMMA).astype(jnp.float32)
                return sums[0] + jnp.sum(x, axis=1), sums[1] + jnp.sum(x * x, axis=1)

            return lax.fori_loop(0, 2, add, carry)

        sums = self._each_tile(wg, measure, (row_zeros(), row_zeros()))
        total, squares = self._reduce(wg, 0, [(value, jnp.add) for value in sums], scratch)
        return moments(total, squares, self.k * self.config.split, self.spec)

    def _prepare(self, tile, *, moments, channels_gmem, scratch) -> tuple[Array, Array]:
        """Apply what comes before the rotation, in place; return Σ|x| and max|x| of each tile row."""

        if moments is not None:
            moments = self._only_real_groups(tile, moments[0]), moments[1]

        def prepare(half, carry):
            total, largest = carry
            x_smem = self._half(tile, half, scratch)
            x = load(x_smem, plgpu.Layout.WGMMA).astype(jnp.float32)
            if moments is not None:
                mean, inverse = (lax.broadcast_in_dim(vector, x.shape, (0,)) for vector in moments)
                x = (x - mean) * inverse
            if self.spec.affine:
                x = self._scale_channels(x, tile, half, *channels_gmem)
            if self.spec.activation == "gelu_tanh":
                x = gelu_tanh(x)
            if self.spec.changes:
                x_smem[...] = x.astype(jnp.bfloat16)
            return total + jnp.sum(jnp.abs(x), axis=1), jnp.maximum(largest, jnp.max(jnp.abs(x), axis=1))

        carry = lax.fori_loop(0, 2, prepare, (row_zeros(), row_zeros()))
        if self.spec.changes:
            plgpu.commit_smem()
        return carry

    def _only_real_groups(self, tile, mean: Array) -> Array:
        """Groups beyond the last are zeros, and have to stay so."""
        if self._padded_k == self.k:
            return mean
        row = plgpu.broadcasted_iota(jnp.int32, (TILE,), 0, layout=ROWS)
        return jnp.where(row < (self.k // GROUP - tile * self.tile_groups) * self.config.rows, mean, row_zeros())

    def _scale_channels(self, x: Array, tile, half, factor_gmem, offset_gmem) -> Array:
        """x · factor + offset by channel. Rows of a tile are different channels, so each thread fetches its own."""
        first = tile * self.tile_groups * GROUP + half * HALF
        channel_of = functools.partial(
            channels.channel_of, rows=self.config.rows, split=self.config.split, padded_k=self._padded_k
        )
        return channels.scale(x, first, factor_gmem, offset_gmem, channel_of)

    def _half(self, tile, half, scratch):
        return scratch["x_smem"].at[tile, :, pl.ds(half * HALF, HALF)]

    def _products(self, tile, part, scratch) -> tuple[Array, Array]:
        """32 columns of both halves of a tile times the matrix."""
        halves = self._half(tile, 0, scratch), self._half(tile, 1, scratch)

        def multiply(left, right):
            # The matrix is symmetric: its rows serve as the columns wanted.
            matrix = scratch["matrix_smem"].at[pl.ds(part * WIDTH, WIDTH)].T
            plgpu.wgmma(left, halves[0], matrix)
            plgpu.wgmma(right, halves[1], matrix)
            plgpu.wgmma_wait(0)
            return left[...], right[...]

        acc = plgpu.ACC(PIECE, jnp.float32)
        return pl.run_scoped(multiply, acc, acc)

    def _butterfly(self, a: Array, b: Array) -> tuple[Array, Array]:
        return (a + b, a - b) if self.spec.rotate else (a, b)

    def _row_amax(self, a: Array, b: Array) -> Array:
        """Of the butterfly, without making it: the larger of |a + b| and |a - b| is |a| + |b|."""
        combine = jnp.add if self.spec.rotate else jnp.maximum
        return jnp.max(combine(jnp.abs(a), jnp.abs(b)), axis=1)

    def _amax(self, tile, scratch) -> Array:
        measure = lambda part, amax: jnp.maximum(amax, self._row_amax(*self._products(tile, part, scratch)))
        return lax.fori_loop(0, PARTS, measure, row_zeros())

    def _store(self, wg, block, tile, slot, inverse, outputs: Outputs, scratch) -> None:
        codes_smem = scratch["codes_smem"].at[wg, slot]
        plgpu.wait_smem_to_gmem(self.config.slots * self.tile_groups - self.tile_groups, wait_read_only=True)

        @pl.loop(0, PARTS)
        def _encode(part):
            for half, values in enumerate(self._butterfly(*self._products(tile, part, scratch))):
                columns = pl.ds(half * HALF + part * WIDTH, WIDTH)
                codes_smem[:, columns] = rounded_to_codes(values * lax.broadcast_in_dim(inverse, PIECE, (0,)))

        plgpu.commit_smem()
        rows = pl.ds(block * self.config.rows, self.config.rows)
        for inside, columns in self._pieces(tile):
            plgpu.copy_smem_to_gmem(codes_smem.at[inside], outputs.codes.at[rows, columns])

    # Reductions over the groups of a row and the parts of a token.

    def _reduce(self, wg, phase: int, vectors, scratch) -> list[Array]:
        """Reduce over all tile rows that belong to one token, in all warpgroups; every row gets the result."""
        smem, rows = scratch["vectors_smem"], self.config.rows
        # A warpgroup may still read what met first when another writes what meets next.
        first = 3 if phase == 0 else 0
        for index, (vector, _) in enumerate(vectors, first):
            self._write_twice(smem.at[wg, index], vector)
        plgpu.commit_smem()
        plgpu.barrier_arrive(scratch["met"].at[phase])
        plgpu.barrier_wait(scratch["met"].at[phase])
        results = []
        for index, (_, combine) in enumerate(vectors, first):
            windows = [
                load(smem.at[other, index, pl.ds(shift, TILE)], ROWS)
                for other in range(self.config.warpgroups)
                for shift in range(0, TILE, rows)
            ]
            results.append(functools.reduce(combine, windows))
        return results if self.config.split == 1 else self._join_parts(wg, vectors, results, scratch)

    def _join_parts(self, wg, vectors, results: list[Array], scratch) -> list[Array]:
        """Parts of a token are neighbouring rows: combine row r with r ^ 1, then r ^ 2, …"""
        out = []
        for (_, combine), value in zip(vectors, results, strict=True):
            for level in range(int(math.log2(self.config.split))):
                out_smem = scratch["vectors_smem"].at[wg, self._exchanged - 1]
                self._write_twice(out_smem, value)
                plgpu.commit_smem()
                distance, rows = 1 << level, self.config.rows
                after = load(out_smem.at[pl.ds(distance, TILE)], ROWS)
                before = load(out_smem.at[pl.ds(rows - distance, TILE)], ROWS)
                row = plgpu.broadcasted_iota(jnp.int32, (TILE,), 0, layout=ROWS)
                value = combine(value, jnp.where((row & distance) == 0, after, before))
                plgpu.commit_smem()
            out.append(value)
        return out

    def _write_twice(self, ref, vector: Array) -> None:
        ref[pl.ds(0, TILE)] = vector
        ref[pl.ds(TILE, TILE)] = vector


def row_zeros() -> Array:
    return plgpu.layout_cast(jnp.zeros((TILE,), jnp.float32), ROWS)
