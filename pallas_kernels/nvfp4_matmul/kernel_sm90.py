"""bf16 activations × NVFP4 weights for few tokens, on Hopper: weights are decoded in registers.

With few tokens the cost is reading the weight, and here it is read at 4.5 bits a value. Operands are swapped: 64 rows
of the weight are the register operand of a wgmma, the tokens its other side. The grid is (rows / 128, parts of K);
parts are added up outside, where scale and bias are applied too. With `inside` there is one part, finished here: scale,
bias, rounding and the transpose to (tokens, rows). CTAs of a cluster work on neighbouring rows and share the tokens by
multicast: at 64 tokens these are more bytes from the second-level cache than the weight is from memory.

What bounds it, for 13824 × 5120 and eight tokens, is less the memory (39.8 MB, 9.4 µs) than the instructions. Tiles of
128 rows keep 108 of 132 SMs busy, each with 20 chunks of 128 × 256 values. A chunk is a pass of the loop for two warps
of each scheduler. At 427 instructions a pass, and 75 of the loading warp, 20 chunks were 18600 cycles, 9.8 µs at 1.9
GHz, for schedulers that never wait; measured were 18.7 µs, launches included. At 335 and 38 it is 14200, 7.5 µs. Hence

- `decode_sm90`, two and a half instructions a value with everything else;
- `span`: chunks that share a stage's barriers and copies, which cost another 75 instructions each. Scales then come in
  rows longer than the 16 bytes of one chunk, whose copying takes a request a row like that of 128 bytes of codes;
- `depth`: products begun together share the computation of addresses;
- `groups`: two decoding warpgroups are two warps a scheduler, which wait for every product they make. With two groups
  it is four, in half the registers; they take stages in turn, and their sums are added up at the end.

One CTA fills an SM. Dividing K so that all 132 SMs work would take an eighth off the loop, and needs sums across CTAs.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.mosaic import launch_grid, load, swizzled
from pallas_kernels.nvfp4_matmul.config import CHUNK, FusedConfig
from pallas_kernels.nvfp4_matmul.decode_sm90 import BLOCKS, ROWS, SWIZZLED, WORDS, decode
from pallas_kernels.nvfp4_matmul.emulation import SCALE_BACK, interleave
from pallas_kernels.nvfp4_matmul.vectors_sm90 import by_row

DECODERS = 2


def run(x: Array, packed: Array, block_scale: Array, *, config: FusedConfig, interpret: Any = None) -> Array:
    """Partial products f32 (parts, n, m) of x bf16 (m, k), m <= 208 a multiple of 8, times 2^-7."""
    m, n = x.shape[0], packed.shape[0]
    out_type = jax.ShapeDtypeStruct((config.parts, n, m), jnp.float32)
    return _launch(x, packed, block_scale, [], out_type, config, interpret)


def run_inside(
    x: Array,
    packed: Array,
    block_scale: Array,
    *vectors: Array,
    tokens: int,
    config: FusedConfig,
    interpret: Any = None,
) -> Array:
    """The finished product of the first `tokens` rows, bf16 (tokens, n). vectors: tensor scale f32 (1,) or (n,), and
    bias f32 (n,) if there is one."""
    out_type = jax.ShapeDtypeStruct((tokens, packed.shape[0]), jnp.bfloat16)
    return _launch(x, packed, block_scale, vectors, out_type, config, interpret)


def _launch(x, packed, block_scale, vectors, out_type, config: FusedConfig, interpret) -> Array:
    (m, k), n = x.shape, packed.shape[0]
    words = lax.bitcast_convert_type(packed.reshape(n, k // 8, 4), jnp.int32)
    scales = lax.bitcast_convert_type(block_scale, jnp.int8)
    call = launch_grid(
        Kernel(m, k, config),
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
    config: FusedConfig

    @property
    def fills(self) -> int:
        """Stages filled in all, per part."""
        return self.k // (CHUNK * self.config.span) // self.config.parts

    def __call__(self, x_gmem, words_gmem, scales_gmem, *rest) -> None:
        *vectors_gmem, out_gmem = rest
        config, rows = self.config, DECODERS * ROWS
        stages, span = min(config.stages, self.fills), config.span
        if config.inside:
            turned = (DECODERS, self.m, ROWS)
            extra = dict(out_smem=plgpu.SMEM(turned, jnp.bfloat16, transforms=swizzled(ROWS, jnp.bfloat16)))
        else:
            extra = dict(out_smem=plgpu.SMEM((DECODERS, ROWS, self.m), jnp.float32))
        if config.groups > 1:
            extra["partial_smem"] = plgpu.SMEM((DECODERS, ROWS, self.m), jnp.float32)
            extra["partial_full"] = plgpu.Barrier(num_barriers=DECODERS)
        empty = dict(num_arrivals=DECODERS, num_barriers=stages)
        pl.run_scoped(
            functools.partial(self._roles, (x_gmem, words_gmem, scales_gmem), vectors_gmem, out_gmem),
            x_smem=plgpu.SMEM((stages, self.m, span * CHUNK), jnp.bfloat16, transforms=swizzled(CHUNK, jnp.bfloat16)),
            words_smem=plgpu.SMEM((stages, rows, span * WORDS), jnp.int32, transforms=SWIZZLED),
            scales_smem=plgpu.SMEM((stages, rows, span * BLOCKS), jnp.int8),
            full=plgpu.Barrier(num_arrivals=3, num_barriers=stages),
            empty=plgpu.ClusterBarrier(collective_axes=("cluster",), **empty)
            if config.cluster > 1
            else plgpu.Barrier(**empty),
            **extra,
            collective_axes="wg",
        )

    def _roles(self, inputs, vectors_gmem, out_gmem, **scratch) -> None:
        wg, decoders = lax.axis_index("wg"), DECODERS * self.config.groups
        for_loading, for_decoding = (40, 232) if self.config.groups == 1 else (24, 112)

        @pl.when(wg == decoders)
        def _load():
            plgpu.set_max_registers(for_loading, action="decrease")
            self._load(inputs, scratch)

        @pl.when(wg != decoders)
        def _decode():
            plgpu.set_max_registers(for_decoding, action="increase")
            self._multiply(wg, vectors_gmem, out_gmem, scratch)

    def _row_tile(self) -> Array:
        tile = lax.axis_index("rows")
        return tile if self.config.cluster == 1 else tile * self.config.cluster + lax.axis_index("cluster")

    def _load(self, inputs, scratch) -> None:
        x_gmem, words_gmem, scales_gmem = inputs
        stages, span = scratch["x_smem"].shape[0], self.config.span
        rows = pl.ds(self._row_tile() * DECODERS * ROWS, DECODERS * ROWS)
        first = lax.axis_index("part") * self.fills
        shared = {"collective_axes": "cluster"} if self.config.cluster > 1 else {}

        @pl.loop(0, self.fills)
        def _fill(i):
            slot = lax.rem(i, stages)
            full = scratch["full"].at[slot]

            @pl.when(i >= stages)
            def _wait_until_empty():
                plgpu.barrier_wait(scratch["empty"].at[slot])

            columns = lambda size: pl.ds((first + i) * span * size, span * size)
            plgpu.copy_gmem_to_smem(words_gmem.at[rows, columns(WORDS)], scratch["words_smem"].at[slot], full)
            plgpu.copy_gmem_to_smem(scales_gmem.at[rows, columns(BLOCKS)], scratch["scales_smem"].at[slot], full)
            plgpu.copy_gmem_to_smem(x_gmem.at[:, columns(CHUNK)], scratch["x_smem"].at[slot], full, **shared)

        @pl.loop(0, stages)
        def _drain(i):
            plgpu.barrier_wait(scratch["empty"].at[lax.rem(self.fills - stages + i, stages)])

    def _multiply(self, wg, vectors_gmem, out_gmem, scratch) -> None:
        groups = self.config.groups
        group, wg = lax.div(wg, DECODERS), lax.rem(wg, DECODERS)
        first_row = (self._row_tile() * DECODERS + wg) * ROWS
        # Early: they arrive while the first weights do.
        vectors = [by_row(vector, first_row) for vector in vectors_gmem]
        total = pl.run_scoped(
            functools.partial(self._accumulate, group, wg, scratch), plgpu.ACC((ROWS, self.m), jnp.float32)
        )
        if groups == 1:
            self._finish(wg, first_row, total, vectors, out_gmem, scratch)
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
            both = total + load(partial, plgpu.Layout.WGMMA)
            self._finish(wg, first_row, both, vectors, out_gmem, scratch)

    def _accumulate(self, group, wg, scratch, acc) -> Array:
        stages, groups = scratch["x_smem"].shape[0], self.config.groups
        span, depth = self.config.span, self.config.depth
        mine = pl.ds(wg * ROWS, ROWS)

        @pl.loop(0, lax.div(self.fills - group + groups - 1, groups))
        def _stage(i):
            # The number of stages is even: a slot is always the same group's, which counts its phases.
            slot = lax.rem(i * groups + group, stages)
            plgpu.barrier_wait(scratch["full"].at[slot])
            words, scales = (scratch[name].at[slot, mine] for name in ("words_smem", "scales_smem"))
            for chunk in range(span):
                for i, weights in enumerate(decode(words, scales, chunk, span, depth)):
                    x = scratch["x_smem"].at[slot, :, pl.ds(chunk * CHUNK + i * depth, depth)]
                    plgpu.wgmma(acc, weights, x.T)
                # Operand registers must stay as they are until the products are done; other warpgroups fill in.
                plgpu.wgmma_wait(0)
            plgpu.barrier_arrive(scratch["empty"].at[slot])

        return acc[...]

    def _finish(self, wg, first_row, total: Array, vectors, out_gmem, scratch) -> None:
        out_smem, rows = scratch["out_smem"].at[wg], pl.ds(first_row, ROWS)
        if self.config.inside:
            scale, *bias = (lax.broadcast_in_dim(vector, total.shape, (0,)) for vector in vectors)
            y = total * (scale * SCALE_BACK)
            y = (y + bias[0] if bias else y).astype(jnp.bfloat16)
            out_smem.T[...] = plgpu.layout_cast(y, plgpu.Layout.WGMMA_TRANSPOSED)
            # As many tokens as were multiplied. Those past the end of the array are not written.
            target = out_gmem.at[pl.ds(lax.axis_index("part") * self.m, self.m), rows]
        else:
            out_smem[...] = total
            target = out_gmem.at[lax.axis_index("part"), rows]
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_smem, target)
        plgpu.wait_smem_to_gmem(0)
