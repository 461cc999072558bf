"""s8 × s8 -> s32 on Hopper's tensor cores, scaled and finished before it leaves the chip.

One CTA an SM walks over the output tiles. Its last warpgroup only issues TMA loads, through a ring of `stages` slots
that runs on from tile to tile; the others multiply. Each slot has a `full` barrier (the load arrived) and an `empty`
barrier (all multiplying warpgroups, of both CTAs if they are paired, are done with it).

The multiplying warpgroups share nothing but the slots, so they drift apart by a step or two, and one finishes its tile
(scales, bias, GELU, store) while the other keeps the tensor cores busy. Forcing a distance between them was slower.

Rows may be ragged: TMA reads zeros beyond the edge and drops what is written there.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.int8_matmul.config import PIECE, TILE_K, Int8MatmulConfig
from pallas_kernels.int8_matmul.emulation import gelu_tanh
from pallas_kernels.mosaic import in_eights, launch, load, swizzled

# Registers of a multiplying warpgroup and of the loading one: what 65536 of an SM allow.
REGISTERS = {2: (232, 40), 3: (160, 32)}
ROWS, COLUMNS = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)


def run(
    x: Array,
    w: Array,
    x_scale: Array,
    w_scale: Array,
    bias: Array | None,
    gate: Array | None,
    residual: Array | None,
    *,
    activation: str | None,
    out_dtype: Any,
    config: Int8MatmulConfig,
    sms: int,
    interpret: Any = None,
) -> Array:
    """See `api.int8_matmul`; arguments are taken as checked."""
    rows, n = x.shape[0], w.shape[0]
    x, x_scale = in_eights(x), in_eights(x_scale)
    residual = None if residual is None else in_eights(residual)
    (m, k), grouped = x.shape, x_scale.ndim == 2
    if gate is not None and activation is None:  # one product less for every value
        w_scale, bias, gate = w_scale * gate, None if bias is None else bias * gate, None
    vectors = [v for v in (w_scale, bias, gate) if v is not None]
    has = dict(grouped=grouped, has_bias=bias is not None, has_gate=gate is not None, adds=residual is not None)
    kernel = Kernel(m, k, n, **has, activation=activation, out_dtype=jnp.dtype(out_dtype), config=config)
    call = launch(
        kernel,
        jax.ShapeDtypeStruct((m, n), out_dtype),
        sms=sms,
        warpgroups=config.multipliers + 1,
        cluster=config.cluster_size,
        approx_math=True,
        interpret=interpret,
    )
    # TMA wants row strides of 16 bytes, so groups lead.
    row_scale = x_scale.T if grouped else x_scale
    return call(x, w, row_scale, *vectors, *([] if residual is None else [residual]))[:rows]


@dataclasses.dataclass(frozen=True)
class Tile:
    """One output tile of this CTA: where it starts, and how many K steps came before it."""

    m: Array
    n: Array
    steps_before: Array


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The kernel body for one case. Called with the operands in GMEM, then the output."""

    m: int
    k: int
    n: int
    grouped: bool
    has_bias: bool
    has_gate: bool
    adds: bool  # the residual
    activation: str | None
    out_dtype: Any
    config: Int8MatmulConfig

    def __call__(self, x_gmem, w_gmem, row_scale_gmem, *rest) -> None:
        *vectors_gmem, out_gmem = rest
        residual_gmem = vectors_gmem.pop() if self.adds else None
        operands = (x_gmem, w_gmem, row_scale_gmem, vectors_gmem, residual_gmem, out_gmem)
        pl.run_scoped(functools.partial(self._roles, operands), **self._scratch(), collective_axes="wg")

    def _scratch(self) -> dict[str, Any]:
        config, (rows, columns) = self.config, self.config.cta_tile
        barrier = functools.partial(plgpu.Barrier, num_barriers=config.stages)
        empty = dict(num_arrivals=config.multipliers, num_barriers=config.stages)
        scratch = dict(
            x_smem=plgpu.SMEM((config.stages, rows, TILE_K), jnp.int8, transforms=swizzled(TILE_K, jnp.int8)),
            w_smem=plgpu.SMEM((config.stages, columns, TILE_K), jnp.int8, transforms=swizzled(TILE_K, jnp.int8)),
            out_smem=plgpu.SMEM(
                (config.multipliers, config.slots, PIECE, PIECE),
                self.out_dtype,
                transforms=swizzled(PIECE, self.out_dtype),
            ),
            vectors_smem=plgpu.SMEM((self.vectors, columns), jnp.float32),
            # Grouped: one row of scales a K step, in the ring. Else one a tile.
            row_scale_smem=plgpu.SMEM((config.stages, rows) if self.grouped else (rows,), jnp.float32),
            full=barrier(num_arrivals=2 + self.grouped),
            empty=plgpu.ClusterBarrier(collective_axes=("cluster",), **empty)
            if config.cluster
            else plgpu.Barrier(**empty),
            vectors_full=plgpu.Barrier(num_arrivals=self.vectors + (not self.grouped)),
            vectors_empty=plgpu.Barrier(num_arrivals=config.multipliers),
        )
        if self.adds:
            scratch["residual_ready"] = plgpu.Barrier(num_barriers=config.multipliers * config.slots)
        return scratch

    @property
    def vectors(self) -> int:
        return 1 + self.has_bias + self.has_gate

    @property
    def k_steps(self) -> int:
        return self.k // TILE_K

    def _roles(self, operands, **scratch) -> None:
        wg, loader = lax.axis_index("wg"), self.config.multipliers
        many, few = REGISTERS[self.config.multipliers]

        @pl.when(wg == loader)
        def _load():
            plgpu.set_max_registers(few, action="decrease")
            self._each_tile(lambda tile: self._load_tile(tile, operands, scratch))
            self._drain(scratch)

        @pl.when(wg != loader)
        def _multiply():
            plgpu.set_max_registers(many, action="increase")
            self._each_tile(lambda tile: self._multiply_tile(wg, tile, operands, scratch))
            plgpu.wait_smem_to_gmem(0)

    def _each_tile(self, visit) -> None:
        config = self.config
        grid = config.grid(self.m, self.n)
        rows, columns = config.cta_tile

        @plgpu.nd_loop((grid[0] * grid[1],), collective_axes="grid")
        def _tile(info):
            m, n = plgpu.planar_snake(info.index[0], grid, "mn".index(config.minor), config.band)
            if config.cluster == "m":
                m = m * 2 + lax.axis_index("cluster")
            if config.cluster == "n":
                n = n * 2 + lax.axis_index("cluster")
            visit(Tile(m * rows, n * columns, info.local_index * self.k_steps))

    def _my_tiles(self) -> Array:
        tiles, step = math.prod(self.config.grid(self.m, self.n)), lax.axis_size("grid")
        return lax.div(tiles - lax.axis_index("grid") + step - 1, step)

    # The loading warpgroup.

    def _load_tile(self, tile: Tile, operands, scratch) -> None:
        config, (rows, columns) = self.config, self.config.cta_tile
        x_gmem, w_gmem, row_scale_gmem, *_ = operands

        @pl.loop(0, self.k_steps)
        def _step(step):
            count = tile.steps_before + step
            slot = lax.rem(count, config.stages)
            full = scratch["full"].at[slot]

            @pl.when(count >= config.stages)
            def _wait_until_empty():
                plgpu.barrier_wait(scratch["empty"].at[slot])

            k = pl.ds(step * TILE_K, TILE_K)
            for source, target, start, size, shared in (
                (x_gmem, scratch["x_smem"], tile.m, rows, config.cluster == "n"),
                (w_gmem, scratch["w_smem"], tile.n, columns, config.cluster == "m"),
            ):
                multicast = {"collective_axes": "cluster"} if shared else {}
                plgpu.copy_gmem_to_smem(source.at[pl.ds(start, size), k], target.at[slot], full, **multicast)
            if self.grouped:
                scales = row_scale_gmem.at[step, pl.ds(tile.m, rows)]
                plgpu.copy_gmem_to_smem(scales, scratch["row_scale_smem"].at[slot], full)

            # By this step both multiplying warpgroups are past the tile before, unless K is very short.
            @pl.when(step == min(config.stages, self.k_steps - 1))
            def _send_vectors():
                self._load_vectors(tile, operands, scratch)

    def _load_vectors(self, tile: Tile, operands, scratch) -> None:
        """What the epilogue multiplies and adds by."""
        _, _, row_scale_gmem, vectors_gmem, *_ = operands
        rows, columns = self.config.cta_tile
        full = scratch["vectors_full"]

        @pl.when(tile.steps_before > 0)
        def _wait_until_empty():
            plgpu.barrier_wait(scratch["vectors_empty"])

        for index, source in enumerate(vectors_gmem):
            plgpu.copy_gmem_to_smem(source.at[pl.ds(tile.n, columns)], scratch["vectors_smem"].at[index], full)
        if not self.grouped:
            plgpu.copy_gmem_to_smem(row_scale_gmem.at[pl.ds(tile.m, rows)], scratch["row_scale_smem"], full)

    def _drain(self, scratch) -> None:
        """Stay until everything is consumed: a paired CTA signals barriers that live in this one."""
        steps = self._my_tiles() * self.k_steps

        @pl.loop(lax.max(steps - self.config.stages, 0), steps)
        def _step(step):
            plgpu.barrier_wait(scratch["empty"].at[lax.rem(step, self.config.stages)])

        @pl.when(steps > 0)
        def _vectors():
            plgpu.barrier_wait(scratch["vectors_empty"])

    # The multiplying warpgroups.

    def _multiply_tile(self, wg, tile: Tile, operands, scratch) -> None:
        total = (self._sum_groups if self.grouped else self._sum_exactly)(wg, tile, operands, scratch)
        self._finish(wg, tile, total, operands, scratch)

    def _wgmma(self, acc, wg, slot, scratch) -> None:
        mine = lambda size: pl.ds(wg * size, size)
        split_m = self.config.split == "m"
        x_smem, w_smem = scratch["x_smem"].at[slot], scratch["w_smem"].at[slot]
        x_smem = x_smem.at[mine(self.config.tile_m)] if split_m else x_smem
        w_smem = w_smem if split_m else w_smem.at[mine(self.config.tile_n)]
        plgpu.wgmma(acc, x_smem, w_smem.T)

    def _sum_exactly(self, wg, tile: Tile, operands, scratch) -> Array:
        """All of K in one s32 accumulator; one wgmma stays in flight while the next slot is waited for."""
        stages = self.config.stages

        def multiply(acc):
            def step_after(first):
                def step(i, _):
                    slot = lax.rem(tile.steps_before + i, stages)
                    plgpu.barrier_wait(scratch["full"].at[slot])
                    self._wgmma(acc, wg, slot, scratch)
                    if not first:
                        plgpu.wgmma_wait(1)
                        plgpu.barrier_arrive(scratch["empty"].at[lax.rem(tile.steps_before + i - 1, stages)])

                return step

            step_after(True)(jnp.int32(0), None)
            # A second loop, to send later, would make the compiler spill accumulators between the two.
            self._send_for_residuals(wg, tile, operands, scratch)
            lax.fori_loop(1, self.k_steps, step_after(False), None)
            plgpu.wgmma_wait(0)
            plgpu.barrier_arrive(scratch["empty"].at[lax.rem(tile.steps_before + self.k_steps - 1, stages)])
            return acc[...]

        acc = plgpu.ACC((self.config.tile_m, self.config.tile_n), jnp.int32)
        return pl.run_scoped(multiply, acc).astype(jnp.float32)

    def _sum_groups(self, wg, tile: Tile, operands, scratch) -> Array:
        """One s32 accumulator a group of K, scaled and added up in f32."""
        config = self.config
        shape = (config.tile_m, config.tile_n)

        def step(i, total):
            slot = lax.rem(tile.steps_before + i, config.stages)
            plgpu.barrier_wait(scratch["full"].at[slot])

            def multiply(acc):
                self._wgmma(acc, wg, slot, scratch)
                rows = pl.ds(self._corner(wg)[0], config.tile_m)
                scale = load(scratch["row_scale_smem"].at[slot, rows], ROWS)
                return acc[...], scale

            products, scale = pl.run_scoped(multiply, plgpu.ACC(shape, jnp.int32))
            plgpu.barrier_arrive(scratch["empty"].at[slot])
            return total + products.astype(jnp.float32) * lax.broadcast_in_dim(scale, shape, (0,))

        zeros = plgpu.layout_cast(jnp.zeros(shape, jnp.float32), plgpu.Layout.WGMMA)
        self._send_for_residuals(wg, tile, operands, scratch)
        return lax.fori_loop(0, self.k_steps, step, zeros)

    # The epilogue.

    def _corner(self, wg) -> tuple[Array, Array]:
        """Where this warpgroup's part starts inside the tile."""
        if self.config.split == "m":
            return wg * self.config.tile_m, jnp.int32(0)
        return jnp.int32(0), wg * self.config.tile_n

    def _pieces(self) -> list[tuple[int, int]]:
        return [(i, j) for i in range(0, self.config.tile_m, PIECE) for j in range(0, self.config.tile_n, PIECE)]

    def _send_for_residuals(self, wg, tile: Tile, operands, scratch) -> None:
        """Start the loads of the first squares of the residual, into the squares the result will leave by."""
        *_, residual_gmem, _ = operands
        if residual_gmem is None:
            return
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        for index in range(min(self.config.slots, len(self._pieces()))):
            self._send_for_residual(index, wg, tile, residual_gmem, scratch)

    def _send_for_residual(self, index: int, wg, tile: Tile, residual_gmem, scratch) -> None:
        slot = index % self.config.slots
        ready = scratch["residual_ready"].at[wg * self.config.slots + slot]
        source = self._piece_of(residual_gmem, index, wg, tile)
        plgpu.copy_gmem_to_smem(source, scratch["out_smem"].at[wg, slot], ready)

    def _piece_of(self, ref, index: int, wg, tile: Tile):
        m, n = self._corner(wg)
        i, j = self._pieces()[index]
        return ref.at[pl.ds(tile.m + m + i, PIECE), pl.ds(tile.n + n + j, PIECE)]

    def _finish(self, wg, tile: Tile, total: Array, operands, scratch) -> None:
        """Scale, add, activate and store, square by square."""
        *_, residual_gmem, out_gmem = operands
        out_smem, slots, pieces = scratch["out_smem"], self.config.slots, self._pieces()
        plgpu.barrier_wait(scratch["vectors_full"])
        if not self.adds:
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        for index, (i, j) in enumerate(pieces):
            slot = index % slots
            y = self._scaled(wg, total[i : i + PIECE, j : j + PIECE], i, j, scratch)
            if self.adds:
                plgpu.barrier_wait(scratch["residual_ready"].at[wg * slots + slot])
                before = load(out_smem.at[wg, slot], plgpu.Layout.WGMMA)
                y = self._vector(self.vectors - 1, wg, j, scratch) * y if self.has_gate else y
                y = before.astype(jnp.float32) + y
            elif index >= slots:
                plgpu.wait_smem_to_gmem(slots - 1, wait_read_only=True)
            out_smem[wg, slot] = y.astype(self.out_dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(out_smem.at[wg, slot], self._piece_of(out_gmem, index, wg, tile))
            if self.adds and index + slots < len(pieces):
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                self._send_for_residual(index + slots, wg, tile, residual_gmem, scratch)
        plgpu.barrier_arrive(scratch["vectors_empty"])

    def _scaled(self, wg, piece: Array, i: int, j: int, scratch) -> Array:
        if not self.grouped:
            rows = load(scratch["row_scale_smem"].at[pl.ds(self._corner(wg)[0] + i, PIECE)], ROWS)
            piece = piece * lax.broadcast_in_dim(rows, piece.shape, (0,))
        y = piece * self._vector(0, wg, j, scratch)
        if self.has_bias:
            y = y + self._vector(1, wg, j, scratch)
        return gelu_tanh(y) if self.activation == "gelu_tanh" else y

    def _vector(self, which: int, wg, j: int, scratch) -> Array:
        ref = scratch["vectors_smem"].at[which, pl.ds(self._corner(wg)[1] + j, PIECE)]
        return lax.broadcast_in_dim(load(ref, COLUMNS), (PIECE, PIECE), (1,))
