"""Queries and keys to INT8, values to transposed e4m3, on Hopper: norm, rotation, smoothing and rounding in one pass.

`Round` takes a block of tokens, 64 a warpgroup, through some heads. What it multiplies and subtracts by comes along:
the inverse of each token's norm, the angles of each token (shared by all heads), and two vectors a head. A warpgroup
loads its part of the next head as soon as this one's is in registers. Queries have a scale a token; keys share one a
block, so the warpgroups meet once a head.

`Transpose` turns 128 tokens of one head over by a product with the identity, which is exact, and rounds. Four keys that
a thread holds of each 16 become one word: this is the order that attention wants its values in (`numbers.place_of`).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention_int8.numbers import HEAD, ONES, ROWS
from pallas_kernels.attention_int8.prologue_registers import (
    BY_COLUMN,
    BY_ROW,
    e4m3_in_fours,
    largest_of_warp,
    rotate_pairs,
    turn_rows,
)
from pallas_kernels.columns import Columns
from pallas_kernels.mosaic import ceil_div, launch_grid, load, swizzled
from pallas_kernels.quantize_rows.spec import rounded_to_codes

TILE = (ROWS, HEAD)
WARP_ROWS = 16
SMALLEST = 1e-12  # the largest magnitude of zeros, for their scale
HEADS_A_CTA = 4  # keep the angles in shared memory


def round_rows(x: Columns, vectors: Array | None, inverse: Array | None, angles: Array | None, kernel: "Round") -> Any:
    """(codes s8 (b·a, tokens, 128), scales f32 (b·a, blocks, tiles, 64)).

    x bf16 (b, s, a, 128), s a multiple of 8; vectors f32 (b, a, 2, 128): what to multiply by and what to subtract;
    inverse f32 (b, s) of the norms; angles f16 (s, 128), cosine and sine of each pair in turn.
    """
    batch, _, heads, _ = x.shape
    codes = jax.ShapeDtypeStruct((batch * heads, kernel.tokens, HEAD), jnp.int8)
    scales = jax.ShapeDtypeStruct((batch * heads, kernel.blocks, kernel.tiles, ROWS), jnp.float32)
    call = launch_grid(
        functools.partial(kernel, heads=heads, first_column=x.first),
        (codes, scales),
        grid={"block": kernel.blocks, "heads": ceil_div(heads, HEADS_A_CTA), "batch": batch},
        warpgroups=kernel.tiles,
    )
    return call(x.merged, *(operand for operand in (vectors, inverse, angles) if operand is not None))


@dataclasses.dataclass(frozen=True)
class Round:
    """The kernel body. `block` tokens share a scale if `shared`, and then those from `valid` on become zeros."""

    tokens: int  # of the result
    block: int
    valid: int
    shared: bool
    normed: bool = False
    centred: bool = False
    rotated: bool = False
    turned: bool = False  # by Hadamard-128

    @property
    def blocks(self) -> int:
        return ceil_div(self.tokens, self.block)

    @property
    def tiles(self) -> int:
        return ceil_div(self.block, ROWS)

    @property
    def unit(self) -> float:
        """Of the scales: turned values lack the factor that makes the rotation orthonormal."""
        return (HEAD**-0.5 if self.turned else 1.0) / 127

    def __call__(self, x_gmem, *rest, heads: int, first_column: int) -> None:
        *inputs, codes_gmem, scale_gmem = rest
        named = {
            "vectors": inputs.pop(0) if self.normed or self.centred else None,
            "inverse": inputs.pop(0) if self.normed else None,
            "angles": inputs.pop(0) if self.rotated else None,
        }
        tile = functools.partial(plgpu.SMEM, (self.tiles, *TILE))
        scratch = dict(
            x_smem=tile(jnp.bfloat16, transforms=swizzled(64, jnp.bfloat16)),
            codes_smem=tile(jnp.int8, transforms=swizzled(HEAD, jnp.int8)),
            scale_smem=plgpu.SMEM((self.tiles, ROWS), jnp.float32),
            arrived=plgpu.Barrier(num_barriers=self.tiles),
        )
        if named["vectors"] is not None:
            scratch["vectors_smem"] = plgpu.SMEM((HEADS_A_CTA, 2, HEAD), jnp.float32)
            scratch["vectors_arrived"] = plgpu.Barrier(num_arrivals=HEADS_A_CTA)
        if self.normed:
            scratch["inverse_smem"] = plgpu.SMEM((self.tiles, ROWS), jnp.float32)
            scratch["inverse_arrived"] = plgpu.Barrier(num_barriers=self.tiles)
        if self.rotated:
            scratch["angles_smem"] = tile(jnp.float16, transforms=swizzled(64, jnp.float16))
            scratch["angles_arrived"] = plgpu.Barrier(num_barriers=self.tiles)
        if self.shared:
            scratch["amax_smem"] = plgpu.SMEM((2, self.tiles, 2 * ROWS), jnp.float32)
            scratch["met"] = plgpu.Barrier(num_arrivals=self.tiles)
        body = functools.partial(self._heads, x_gmem, named, codes_gmem, scale_gmem, heads, first_column)
        pl.run_scoped(body, **scratch, collective_axes="wg")

    def _heads(self, x_gmem, inputs, codes_gmem, scale_gmem, heads: int, first_column: int, **scratch) -> None:
        wg, batch, block = lax.axis_index("wg"), lax.axis_index("batch"), lax.axis_index("block")
        first_head = lax.axis_index("heads") * HEADS_A_CTA
        rows = pl.ds(block * self.block + wg * ROWS, ROWS)
        mine = {
            name: ref if name in ("vectors_smem", "vectors_arrived", "met", "amax_smem") else ref.at[wg]
            for name, ref in scratch.items()
        }

        def fetch(i) -> None:
            columns = pl.ds(first_column + (first_head + i) * HEAD, HEAD)
            plgpu.copy_gmem_to_smem(x_gmem.at[batch, rows, columns], mine["x_smem"], mine["arrived"])

        fetch(0)
        if inputs["vectors"] is not None:
            pl.when(wg == 0)(lambda: self._fetch_vectors(inputs["vectors"].at[batch], first_head, heads, scratch))
        if self.rotated:
            plgpu.copy_gmem_to_smem(inputs["angles"].at[rows], mine["angles_smem"], mine["angles_arrived"])
            plgpu.barrier_wait(mine["angles_arrived"])
        if self.normed:
            plgpu.copy_gmem_to_smem(inputs["inverse"].at[batch, rows], mine["inverse_smem"], mine["inverse_arrived"])
            plgpu.barrier_wait(mine["inverse_arrived"])
        if inputs["vectors"] is not None:
            plgpu.barrier_wait(scratch["vectors_arrived"])
        count = lax.min(heads - first_head, HEADS_A_CTA)

        @pl.loop(0, count)
        def _head(i):
            plgpu.barrier_wait(mine["arrived"])
            x = load(mine["x_smem"], plgpu.Layout.WGMMA).astype(jnp.float32)
            plgpu.commit_smem()  # all threads have read
            pl.when(i + 1 < count)(lambda: fetch(i + 1))
            x = self._prepared(x, i, wg, block, mine)
            amax = jnp.max(jnp.abs(x), axis=1)
            if self.shared:
                amax = self._shared_amax(amax, lax.rem(i, 2), wg, scratch)
            amax = jnp.maximum(amax, SMALLEST)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            mine["codes_smem"][...] = rounded_to_codes(x * lax.broadcast_in_dim(127.0 / amax, TILE, (0,)))
            mine["scale_smem"][...] = amax * self.unit
            plgpu.commit_smem()
            head = batch * heads + first_head + i
            self._store(codes_gmem.at[head], wg, block, mine["codes_smem"])
            plgpu.copy_smem_to_gmem(mine["scale_smem"], scale_gmem.at[head, block, wg])

        plgpu.wait_smem_to_gmem(0)

    def _fetch_vectors(self, vectors_gmem, first_head, heads: int, scratch) -> None:
        for i in range(HEADS_A_CTA):
            # Beyond the last head: any vectors, for the barrier's sake.
            head = lax.min(first_head + i, heads - 1)
            plgpu.copy_gmem_to_smem(vectors_gmem.at[head], scratch["vectors_smem"].at[i], scratch["vectors_arrived"])

    def _prepared(self, x: Array, i, wg, block, mine) -> Array:
        vector_of = lambda which: lax.broadcast_in_dim(load(mine["vectors_smem"].at[i, which], BY_COLUMN), TILE, (1,))
        if self.normed:
            x = x * lax.broadcast_in_dim(load(mine["inverse_smem"], BY_ROW), TILE, (0,)) * vector_of(0)
        if self.rotated:
            x = rotate_pairs(x, load(mine["angles_smem"], plgpu.Layout.WGMMA).astype(jnp.float32))
        if self.centred:
            x = x - vector_of(1)
        if self.turned:
            x = turn_rows(x)
        if not self.shared:
            return x
        # Rows beyond the last key, and beyond the block where its last tile is not full.
        in_block = lax.min(self.block - wg * ROWS, self.valid - block * self.block - wg * ROWS)
        row = plgpu.broadcasted_iota(jnp.int32, TILE, 0, layout=plgpu.Layout.WGMMA)
        zeros = plgpu.layout_cast(jnp.zeros(TILE, jnp.float32), plgpu.Layout.WGMMA)
        return jnp.where(row < in_block, x, zeros)

    def _shared_amax(self, amax: Array, parity, wg, scratch) -> Array:
        """The largest of the block, in every row."""
        exchange = scratch["amax_smem"].at[parity]
        amax = largest_of_warp(amax)
        # Windows run over the end, so it is written twice.
        for start in (0, ROWS):
            exchange[wg, pl.ds(start, ROWS)] = amax
        plgpu.commit_smem()
        plgpu.barrier_arrive(scratch["met"])
        plgpu.barrier_wait(scratch["met"])
        windows = [
            load(exchange.at[other, pl.ds(shift, ROWS)], BY_ROW)
            for other in range(self.tiles)
            for shift in range(0, ROWS, WARP_ROWS)
        ]
        return functools.reduce(jnp.maximum, windows)

    def _store(self, codes_gmem, wg, block, codes_smem) -> None:
        first, last = block * self.block + wg * ROWS, self.block - (self.tiles - 1) * ROWS
        if last == ROWS:
            plgpu.copy_smem_to_gmem(codes_smem, codes_gmem.at[pl.ds(first, ROWS)])
            return
        for here, count in ((wg < self.tiles - 1, ROWS), (wg == self.tiles - 1, last)):
            source, target = codes_smem.at[pl.ds(0, count)], codes_gmem.at[pl.ds(first, count)]
            pl.when(here)(functools.partial(plgpu.copy_smem_to_gmem, source, target))


def transpose_values(v: Columns, vectors: Array, *, tokens: int, valid: int) -> Array:
    """e4m3 (b·a, 136, tokens) of v bf16 (b, s, a, 128), s a multiple of 8.

    vectors f32 (b, a, 2, 128): what to subtract and what to multiply by then.
    """
    batch, _, heads, _ = v.shape
    call = launch_grid(
        Transpose(heads, valid, v.first),
        jax.ShapeDtypeStruct((batch * heads, HEAD + ONES, tokens), jnp.int8),
        grid={"block": ceil_div(tokens, Transpose.block), "head": heads, "batch": batch},
        warpgroups=2,
    )
    one = lax.bitcast_convert_type(jnp.ones((), jnp.float8_e4m3fn), jnp.int8)
    exist = place_groups(jnp.arange(tokens)) < valid
    ones = jnp.broadcast_to(jnp.where(exist, one, jnp.int8(0))[None], (ONES, tokens))
    codes = call(v.merged, vectors, jnp.eye(ROWS, dtype=jnp.bfloat16), ones)
    return lax.bitcast_convert_type(codes, jnp.float8_e4m3fn)


def place_groups(keys: Array) -> Array:
    """Which key lies at each place."""
    return jnp.swapaxes(keys.reshape(-1, 2, 4, 2), 1, 2).reshape(-1)


@dataclasses.dataclass(frozen=True)
class Transpose:
    """The kernel body; a warpgroup takes half of the channels."""

    heads: int
    valid: int
    first_column: int  # of the first head
    block = 128

    def __call__(self, v_gmem, vectors_gmem, identity_gmem, ones_gmem, out_gmem) -> None:
        half = (2, ROWS, self.block)
        pl.run_scoped(
            functools.partial(self._tile, v_gmem, vectors_gmem, identity_gmem, ones_gmem, out_gmem),
            v_smem=plgpu.SMEM((self.block, HEAD), jnp.bfloat16, transforms=swizzled(64, jnp.bfloat16)),
            identity_smem=plgpu.SMEM((ROWS, ROWS), jnp.bfloat16, transforms=swizzled(64, jnp.bfloat16)),
            vectors_smem=plgpu.SMEM((2, HEAD), jnp.float32),
            ones_smem=plgpu.SMEM((ONES, self.block), jnp.int8),
            out_smem=plgpu.SMEM(half, jnp.int8, transforms=swizzled(32, jnp.int8)),
            arrived=plgpu.Barrier(num_arrivals=4),
            collective_axes="wg",
        )

    def _tile(self, v_gmem, vectors_gmem, identity_gmem, ones_gmem, out_gmem, **scratch) -> None:
        wg, batch, head = lax.axis_index("wg"), lax.axis_index("batch"), lax.axis_index("head")
        first = lax.axis_index("block") * self.block
        span, channels, arrived = pl.ds(first, self.block), pl.ds(wg * ROWS, ROWS), scratch["arrived"]

        @pl.when(wg == 0)
        def _load():
            source = v_gmem.at[batch, span, pl.ds(self.first_column + head * HEAD, HEAD)]
            plgpu.copy_gmem_to_smem(source, scratch["v_smem"], arrived)
            plgpu.copy_gmem_to_smem(identity_gmem, scratch["identity_smem"], arrived)
            plgpu.copy_gmem_to_smem(vectors_gmem.at[batch, head], scratch["vectors_smem"], arrived)
            plgpu.copy_gmem_to_smem(ones_gmem.at[:, span], scratch["ones_smem"], arrived)

        plgpu.barrier_wait(arrived)

        def turn(acc) -> Array:
            plgpu.wgmma(acc, scratch["identity_smem"], scratch["v_smem"].at[:, channels].T)
            plgpu.wgmma_wait(0)
            return acc[...]

        shape = (ROWS, self.block)
        values = pl.run_scoped(turn, plgpu.ACC(shape, jnp.float32))
        mean, inverse = (
            lax.broadcast_in_dim(load(scratch["vectors_smem"].at[i, channels], BY_ROW), shape, (0,)) for i in (0, 1)
        )
        values = (values - mean) * inverse
        column = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=plgpu.Layout.WGMMA)
        zeros = plgpu.layout_cast(jnp.zeros(shape, jnp.float32), plgpu.Layout.WGMMA)
        out_smem = scratch["out_smem"].at[wg]
        out_smem[...] = e4m3_in_fours(jnp.where(column < self.valid - first, values, zeros))
        plgpu.commit_smem()
        out_gmem = out_gmem.at[batch * self.heads + head]
        plgpu.copy_smem_to_gmem(out_smem, out_gmem.at[channels, span])

        @pl.when(wg == 0)
        def _store_ones():
            plgpu.copy_smem_to_gmem(scratch["ones_smem"], out_gmem.at[pl.ds(HEAD, ONES), span])

        plgpu.wait_smem_to_gmem(0)
