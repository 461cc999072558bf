"""bf16 activations × NVFP4 weights for few tokens, on Hopper, by products of single warps.

What bounds few tokens is less the memory (13824 × 5120 are 39.8 MB, 9.4 µs) than the instructions that decode, so

- nearly all SMs decode. A product of one warp takes sixteen rows of the weight where a wgmma takes 64: 864 of them are
  seven for each of 124 CTAs, where 108 tiles of 128 rows keep the rest of 132 SMs idle. K is not cut between CTAs;
- each of eight warps multiplies its eighth of the columns with all rows of its CTA. So the tokens, which a warp loads
  straight into registers a span ahead, are loaded once a CTA, in the order they have: no other kernel prepares them;
- warps wait for weights only: not for a product to end, nor for each other.

At seven times sixteen rows and eight tokens a span of 512 columns is 570 instructions a warp: 11400 cycles for the
schedulers of an SM, 6.2 µs at 1.85 GHz, where `kernel_sm90` takes 17200. With two `groups` of eight warps, which take
spans in turn, four warps a scheduler fill each other's waits. Sums are added up in shared memory, in the order of the
warps; then come scale, bias and rounding.

With `early` a CTA begins as soon as an SM is free, and waits for the end of the kernel before only when all is set up.
Where kernels are launched one by one that is 2 µs of 16; in a CUDA graph of XLA's, where each call is a graph of its
own, 0.2. It needs jax 0.11: in 0.10 it changes nothing.

Products of warps have some 60 % of the rate of a wgmma, six or seven cycles each, and every eight tokens take one more:
with 32 of them the tensor cores are nearly as busy as the memory. So this is for few tokens: 1 and 8 of them take 14.7
and 14.8 µs on an H200, where `kernel_sm90` took 21.0 and 18.7. By ncu an SM is busy for 12.3 µs of these, its
schedulers issue in 58 % of the cycles, and warps wait for the weight in 22 % of them.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import ptx
from pallas_kernels.mosaic import WARPGROUP, ceil_div, launch_grid, swizzled
from pallas_kernels.nvfp4_matmul.config import FusedConfig
from pallas_kernels.nvfp4_matmul.lanes_sm90 import BLOCKS, SLICES, WORDS, Lane, Share, multiply
from pallas_kernels.nvfp4_matmul.stages import slot_to_fill

SWIZZLED = swizzled(WORDS, jnp.int32)
WARPGROUPS = SLICES // 4  # of a group


def run(
    x: Array,
    packed: Array,
    block_scale: Array,
    *vectors: Array,
    out_dtype: Any,
    config: FusedConfig,
    interpret: Any = None,
) -> Array:
    """x bf16 (m, k) times the weight, (m, n). vectors: tensor scale f32 (1,) or (n,), and bias f32 (n,) if any."""
    (m, k), n = x.shape, packed.shape[0]
    share = Share(m, k, n, config.tiles, config.groups)
    kernel = Kernel(share, config.stages, config.early, config.ahead or config.stages)
    return launch(kernel, x, packed, block_scale, *vectors, out_dtype=out_dtype, interpret=interpret)


def launch(kernel, x, packed, block_scale, *vectors, out_dtype: Any, cluster: int = 1, interpret: Any = None) -> Array:
    share = kernel.share
    words = lax.bitcast_convert_type(packed.reshape(share.n, share.k // 8, 4), jnp.int32)
    call = launch_grid(
        kernel,
        jax.ShapeDtypeStruct((share.m, share.n), out_dtype),
        grid={"rows": ceil_div(share.n, share.rows * cluster)},
        warpgroups=share.threads // WARPGROUP + 1,
        cluster=cluster,
        interpret=interpret,
    )
    return call(x, words, lax.bitcast_convert_type(block_scale, jnp.int8), *vectors)


@dataclasses.dataclass(frozen=True)
class Kernel:
    share: Share
    stages: int
    early: bool
    ahead: int  # stages that are asked for and not yet here, at most

    def __call__(self, x_gmem, words_gmem, scales_gmem, *rest) -> None:
        *vectors_gmem, out_gmem = rest
        share = self.share
        pl.run_scoped(
            functools.partial(self._roles, (words_gmem, scales_gmem), x_gmem, vectors_gmem, out_gmem),
            words_smem=plgpu.SMEM((self.stages, share.rows, WORDS), jnp.int32, transforms=SWIZZLED),
            scales_smem=plgpu.SMEM((self.stages, share.rows, BLOCKS), jnp.int8),
            sums_smem=plgpu.SMEM((SLICES * share.groups * share.plane,), jnp.float32),
            full=plgpu.Barrier(num_arrivals=2, num_barriers=self.stages),
            empty=plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=self.stages),
            summed=plgpu.Barrier(num_arrivals=WARPGROUPS * share.groups),
            collective_axes="wg",
        )

    def _roles(self, weights_gmem, x_gmem, vectors_gmem, out_gmem, **scratch) -> None:
        wg, groups = lax.axis_index("wg"), self.share.groups
        for_loading, for_decoding = (40, 232) if groups == 1 else (24, 112)
        if self.early:
            plgpu.griddepcontrol_launch_dependents()
            plgpu.griddepcontrol_wait()

        @pl.when(wg == WARPGROUPS * groups)
        def _load():
            plgpu.set_max_registers(for_loading, action="decrease")
            self._load(weights_gmem, scratch)

        @pl.when(wg != WARPGROUPS * groups)
        def _decode():
            plgpu.set_max_registers(for_decoding, action="increase")
            sums = self._multiply(lax.div(wg, WARPGROUPS), x_gmem, scratch)
            self._finish(sums, vectors_gmem, out_gmem, scratch)

    def _load(self, weights_gmem, scratch) -> None:
        rows = pl.ds(self._tile() * self.share.rows, self.share.rows)

        @pl.loop(0, self.share.spans)
        def _span(i):
            slot = slot_to_fill(i, self.stages, self.ahead, scratch)
            for gmem, name, size in zip(weights_gmem, ("words_smem", "scales_smem"), (WORDS, BLOCKS), strict=True):
                source = gmem.at[rows, pl.ds(i * size, size)]
                plgpu.copy_gmem_to_smem(source, scratch[name].at[slot], scratch["full"].at[slot])

    def _multiply(self, group: Array, x_gmem, scratch) -> Array:
        groups = self.share.groups

        def span(i, carry):
            sums, tokens = carry
            # The number of stages is a multiple of the groups': a slot is always the same group's, which counts phases.
            mine = i * groups + group
            slot = lax.rem(mine, self.stages)
            next_tokens = self._tokens(x_gmem, mine + groups)
            plgpu.barrier_wait(scratch["full"].at[slot])
            sums = self._products(sums, tokens, scratch["words_smem"].at[slot], scratch["scales_smem"].at[slot])
            plgpu.barrier_arrive(scratch["empty"].at[slot])
            return sums, next_tokens

        count = lax.div(self.share.spans - group + groups - 1, groups)
        return lax.fori_loop(0, count, span, (self._zeros(), self._tokens(x_gmem, group)))[0]

    def _finish(self, sums: Array, vectors_gmem, out_gmem, scratch) -> None:
        vectors = self._vectors(vectors_gmem)  # on their way while sums are
        self._keep(sums, scratch["sums_smem"])
        plgpu.barrier_arrive(scratch["summed"])
        plgpu.barrier_wait(scratch["summed"])
        self._store(scratch["sums_smem"], vectors, out_gmem)

    # Steps in registers.

    @property
    def _sums(self) -> Any:
        return ptx.bag(self.share.sums, "f")

    @property
    def _held(self) -> Any:
        return ptx.bag(self.share.held, "r")

    def _zeros(self) -> Array:
        @plgpu.inline_mgpu(arg_types=(), return_type=self._sums)
        def run(_):
            return ptx.pack([ptx.constant(0.0, "f")] * self.share.sums, "f")

        return run()

    def _tokens(self, x_gmem, span: Array) -> Array:
        @plgpu.inline_mgpu(arg_types=(ptx.REF, ptx.SCALAR), return_type=self._held)
        def run(_, x, span):
            return ptx.pack(Lane(self.share).tokens(x, ptx.unpack(span)[0]), "r")

        return run(x_gmem, span)

    def _products(self, sums: Array, tokens: Array, words, scales) -> Array:
        arg_types = (self._sums.layout, self._held.layout, plgpu.RefType(SWIZZLED), ptx.REF)

        @plgpu.inline_mgpu(arg_types=arg_types, return_type=self._sums)
        def run(_, sums, tokens, words, scales):
            # All of them first. With each tile's products right after its weights one token took 19 µs, and 16 so.
            weights = list(Lane(self.share).weights(words, scales))
            return ptx.pack(multiply(ptx.unpack(sums), weights, ptx.unpack(tokens)), "f")

        return run(sums, tokens, words, scales)

    def _keep(self, sums: Array, memory) -> None:
        @plgpu.inline_mgpu(arg_types=(self._sums.layout, ptx.REF))
        def run(_, sums, memory):
            Lane(self.share).keep(ptx.unpack(sums), memory)

        run(sums, memory)

    def _tile(self) -> Array:
        return lax.axis_index("rows")

    def _vectors(self, vectors_gmem) -> Array:
        refs, kind = [ptx.REF] * len(vectors_gmem), ptx.bag(2 * len(vectors_gmem) * self.share.items, "f")

        @plgpu.inline_mgpu(arg_types=(ptx.SCALAR, *refs), return_type=kind)
        def run(_, tile, *vectors):
            return ptx.pack(Lane(self.share).vectors(ptx.unpack(tile)[0], vectors), "f")

        return run(self._tile(), *vectors_gmem)

    def _store(self, memory, vectors: Array, out_gmem) -> None:
        count = vectors.size // WARPGROUP

        @plgpu.inline_mgpu(arg_types=(ptx.SCALAR, ptx.REF, ptx.bag(count, "f").layout, ptx.REF))
        def run(_, tile, memory, vectors, out):
            Lane(self.share).finish(ptx.unpack(tile)[0], memory, ptx.unpack(vectors), out)

        run(self._tile(), memory, vectors, out_gmem)
