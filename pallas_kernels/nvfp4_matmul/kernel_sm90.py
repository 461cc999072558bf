"""bf16 activations × NVFP4 weights on Hopper, for more tokens than `warps_sm90` takes: decoded in registers.

With few tokens the cost is reading the weight, and here it is read at 4.5 bits a value. Operands are swapped: 64 rows
of the weight are the register operand of a wgmma, the tokens its other side. The grid is (rows / 128, parts of K);
parts are added up outside, where scale and bias are applied too. With `inside` there is one part, finished here: scale,
bias, rounding and the transpose to (tokens, rows). CTAs of a cluster work on neighbouring rows and share the tokens by
multicast: at 64 tokens these are more bytes from the second-level cache than the weight is from memory.

One CTA fills an SM. Two decoding warpgroups are two warps a scheduler, which wait for every product they make; with
`groups` = 2 it is four, in half the registers, and the two halves of K are added up at the end. What is added up, and
the result on its way out, take the place of the stages: so four of these fit at 64 tokens.

Nothing moves between threads, because any order of K will do if both operands share it. A thread of a wgmma operand
holds, of each 64 columns, four pairs of a row; here these are the 16 codes of one block. `interleave` puts the columns
of x into that order.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import ptx
from pallas_kernels.mosaic import launch_grid, load, swizzled
from pallas_kernels.nvfp4_matmul.config import CHUNK, FusedConfig
from pallas_kernels.nvfp4_matmul.emulation import interleave
from pallas_kernels.nvfp4_matmul.operands_sm90 import BLOCKS, ROWS, STEP, WORDS, decode
from pallas_kernels.nvfp4_matmul.stages import prefetch, slot_to_fill

DECODERS = 2
BY_ROW = plgpu.Layout.WGMMA.reduce(1)


def run(x: Array, packed: Array, block_scale: Array, *, config: FusedConfig, interpret: Any = None) -> Array:
    """Partial products f32 (parts, n, m) of x bf16 (m, k), m <= 256 a multiple of 8, times 2^-7."""
    m, n = x.shape[0], packed.shape[0]
    out_type = jax.ShapeDtypeStruct((config.parts, n, m), jnp.float32)
    return _launch(x, packed, block_scale, [], out_type, config, interpret)


def run_inside(
    x: Array,
    packed: Array,
    block_scale: Array,
    factor: Array,
    bias: Array,
    *,
    config: FusedConfig,
    interpret: Any = None,
) -> Array:
    """The finished product, bf16 (m, n). factor f32 (n,): the tensor scale times 2^7; bias f32 (n,)."""
    out_type = jax.ShapeDtypeStruct((x.shape[0], packed.shape[0]), jnp.bfloat16)
    return _launch(x, packed, block_scale, [factor, bias], out_type, config, interpret)


def _launch(x, packed, block_scale, vectors, out_type, config: FusedConfig, interpret) -> Array:
    (m, k), n = x.shape, packed.shape[0]
    words = lax.bitcast_convert_type(packed.reshape(n, k // 8, 4), jnp.int32)
    scales = lax.bitcast_convert_type(block_scale, jnp.int8)
    call = launch_grid(
        Kernel(m, k, n, config),
        out_type,
        grid={"rows": n // (DECODERS * ROWS * config.cluster), "part": config.parts},
        warpgroups=DECODERS * config.groups + 1,
        cluster=config.cluster,
        interpret=interpret,
    )
    return call(interleave(x), words, scales, *vectors)


@dataclasses.dataclass(frozen=True)
class Kernel:
    m: int
    k: int
    n: int
    config: FusedConfig

    @property
    def chunks(self) -> int:
        """Of K, per part."""
        return self.k // CHUNK // self.config.parts

    @property
    def _at_once(self) -> int:
        """Steps whose operands are held: with little room, two of the four in a chunk, beside many tokens' sums."""
        return 2 if self.config.groups > 1 and self.m > 40 else CHUNK // STEP

    def __call__(self, x_gmem, words_gmem, scales_gmem, *rest) -> None:
        *vectors_gmem, out_gmem = rest
        stages, rows, config = min(self.config.stages, self.chunks), DECODERS * ROWS, self.config
        # What is summed up takes the place of the stages.
        after = {"out_smem": self._out_smem()}
        if config.groups > 1:
            after["partial_smem"] = plgpu.SMEM((DECODERS, ROWS, self.m), jnp.float32)
        extra = {}
        if config.inside:
            extra["vectors_smem"] = plgpu.SMEM((2, rows), jnp.float32)
            extra["vectors_full"] = plgpu.Barrier(num_arrivals=2)
        if config.groups > 1:
            extra["partial_full"] = plgpu.Barrier(num_barriers=DECODERS)
        staged = {
            "x_smem": plgpu.SMEM((stages, self.m, CHUNK), jnp.bfloat16, transforms=swizzled(STEP, jnp.bfloat16)),
            "words_smem": plgpu.SMEM((stages, rows, WORDS), jnp.int32, transforms=swizzled(WORDS, jnp.int32)),
            "scales_smem": plgpu.SMEM((stages, rows, BLOCKS), jnp.int8),
        }
        empty = dict(num_arrivals=DECODERS, num_barriers=stages)
        names = tuple(staged), tuple(after)
        pl.run_scoped(
            functools.partial(self._roles, (x_gmem, words_gmem, scales_gmem, vectors_gmem), out_gmem, names),
            memory=plgpu.RefUnion(list(staged.values()), list(after.values())),
            full=plgpu.Barrier(num_arrivals=3, num_barriers=stages),
            empty=plgpu.ClusterBarrier(collective_axes=("cluster",), **empty)
            if config.cluster > 1
            else plgpu.Barrier(**empty),
            multiplied=plgpu.Barrier(num_arrivals=DECODERS * config.groups),
            **extra,
            collective_axes="wg",
        )

    def _out_smem(self) -> Any:
        if not self.config.inside:
            return plgpu.SMEM((DECODERS, ROWS, self.m), jnp.float32)
        return plgpu.SMEM((DECODERS, self.m, ROWS), jnp.bfloat16, transforms=swizzled(ROWS, jnp.bfloat16))

    def _roles(self, inputs, out_gmem, names, memory, **scratch) -> None:
        for group, refs in zip(names, memory, strict=True):
            scratch |= zip(group, refs if isinstance(refs, Sequence) else [refs], strict=True)
        wg, decoders = lax.axis_index("wg"), DECODERS * self.config.groups
        for_loading, for_decoding = (40, 232) if self.config.groups == 1 else (24, 112)
        if self.config.early:
            plgpu.griddepcontrol_launch_dependents()
            pl.when(wg == decoders)(functools.partial(self._prefetch, *inputs[1:3]))
            plgpu.griddepcontrol_wait()

        @pl.when(wg == decoders)
        def _load():
            plgpu.set_max_registers(for_loading, action="decrease")
            self._load(inputs, scratch)

        @pl.when(wg != decoders)
        def _decode():
            plgpu.set_max_registers(for_decoding, action="increase")
            self._multiply(wg, out_gmem, scratch)

    def _row_tile(self) -> Array:
        tile = lax.axis_index("rows")
        return tile if self.config.cluster == 1 else tile * self.config.cluster + lax.axis_index("cluster")

    def _rows(self) -> Any:
        return pl.ds(self._row_tile() * DECODERS * ROWS, DECODERS * ROWS)

    def _prefetch(self, words_gmem, scales_gmem) -> None:
        first, count = lax.axis_index("part") * self.chunks, min(self.config.stages, self.chunks)
        prefetch((words_gmem, scales_gmem), (WORDS, BLOCKS), self._rows(), first, count)

    def _load(self, inputs, scratch) -> None:
        x_gmem, words_gmem, scales_gmem, vectors_gmem = inputs
        stages, rows = scratch["x_smem"].shape[0], self._rows()
        first = lax.axis_index("part") * self.chunks
        shared = {"collective_axes": "cluster"} if self.config.cluster > 1 else {}

        @pl.loop(0, self.chunks)
        def _chunk(i):
            slot = slot_to_fill(i, stages, self.config.ahead or stages, scratch)
            full = scratch["full"].at[slot]
            columns = lambda size: pl.ds((first + i) * size, size)
            plgpu.copy_gmem_to_smem(x_gmem.at[:, columns(CHUNK)], scratch["x_smem"].at[slot], full, **shared)
            plgpu.copy_gmem_to_smem(words_gmem.at[rows, columns(WORDS)], scratch["words_smem"].at[slot], full)
            plgpu.copy_gmem_to_smem(scales_gmem.at[rows, columns(BLOCKS)], scratch["scales_smem"].at[slot], full)

        for index, vector_gmem in enumerate(vectors_gmem):
            target = scratch["vectors_smem"].at[index]
            plgpu.copy_gmem_to_smem(vector_gmem.at[rows], target, scratch["vectors_full"])

        @pl.loop(0, stages)
        def _drain(i):
            plgpu.barrier_wait(scratch["empty"].at[lax.rem(self.chunks - stages + i, stages)])

    def _multiply(self, wg, out_gmem, scratch) -> None:
        stages, groups = scratch["x_smem"].shape[0], self.config.groups
        group, wg = lax.div(wg, DECODERS), lax.rem(wg, DECODERS)
        mine = pl.ds(wg * ROWS, ROWS)

        def accumulate(acc):
            @pl.loop(0, lax.div(self.chunks - group + groups - 1, groups))
            def _chunk(i):
                # The number of stages is even: a slot is always the same group's, which counts its phases.
                slot = lax.rem(i * groups + group, stages)
                plgpu.barrier_wait(scratch["full"].at[slot])
                words = load(scratch["words_smem"].at[slot, mine], plgpu.Layout.WGMMA_8BIT)
                scales = load(scratch["scales_smem"].at[slot, mine], plgpu.Layout.WGMMA)
                steps = decode(words, scales)
                for step, weights in enumerate(steps):
                    x = scratch["x_smem"].at[slot, :, pl.ds(step * STEP, STEP)]
                    plgpu.wgmma(acc, weights, x.T)
                    if (step + 1) % self._at_once == 0:
                        # Operand registers must stay until the products are done; the other warpgroups fill in.
                        plgpu.wgmma_wait(0)
                if self.config.cluster > 1:
                    ptx.wait_for_warpgroup()
                plgpu.barrier_arrive(scratch["empty"].at[slot])

            return acc[...]

        total = pl.run_scoped(accumulate, plgpu.ACC((ROWS, self.m), jnp.float32))
        plgpu.barrier_arrive(scratch["multiplied"])
        plgpu.barrier_wait(scratch["multiplied"])
        if groups == 1:
            self._finish(wg, mine, total, out_gmem, scratch)
            return
        partial, full = scratch["partial_smem"].at[wg], scratch["partial_full"].at[wg]

        @pl.when(group == 1)
        def _hand_over():
            partial[...] = total
            plgpu.commit_smem()
            plgpu.barrier_arrive(full)

        @pl.when(group == 0)
        def _add():
            plgpu.barrier_wait(full)
            self._finish(wg, mine, total + load(partial, plgpu.Layout.WGMMA), out_gmem, scratch)

    def _finish(self, wg, mine, total: Array, out_gmem, scratch) -> None:
        out_smem = scratch["out_smem"].at[wg]
        rows = pl.ds((self._row_tile() * DECODERS + wg) * ROWS, ROWS)
        if self.config.inside:
            out_smem.T[...] = plgpu.layout_cast(self._finished(total, mine, scratch), plgpu.Layout.WGMMA_TRANSPOSED)
            target = out_gmem.at[:, rows]
        else:
            out_smem[...] = total
            target = out_gmem.at[lax.axis_index("part"), rows]
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_smem, target)
        plgpu.wait_smem_to_gmem(0)

    def _finished(self, total: Array, mine, scratch) -> Array:
        plgpu.barrier_wait(scratch["vectors_full"])
        factor, bias = (
            lax.broadcast_in_dim(load(scratch["vectors_smem"].at[i, mine], BY_ROW), total.shape, (0,)) for i in (0, 1)
        )
        return (total * factor + bias).astype(jnp.bfloat16)
