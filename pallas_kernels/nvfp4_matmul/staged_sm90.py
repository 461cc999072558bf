"""The products of warps of `warps_sm90`, with tokens that come through shared memory, in the stages of the weight.

Warps that load tokens themselves wait behind the weight: its loads fill the way to the second-level cache, as many
stages as are asked for at once, and the tokens of a span are asked for after them. That is up to 6 µs before the first
product. Here a span's tokens are asked for with its weights, and before them.

Each of 124 CTAs reads all tokens: with 32 of them as many bytes as the weight has. CTAs of a `cluster` load a part each
and share it by multicast.

Sums take the place of the stages when all is multiplied: at 32 tokens no second stage would fit otherwise.
"""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import ptx
from pallas_kernels.mosaic import in_eights, swizzled
from pallas_kernels.nvfp4_matmul import warps_sm90
from pallas_kernels.nvfp4_matmul.config import FusedConfig
from pallas_kernels.nvfp4_matmul.lanes_sm90 import BLOCKS, SLICE, SLICES, SPAN, WORDS, Lane, Share, multiply
from pallas_kernels.nvfp4_matmul.stages import prefetch, slot_to_fill
from pallas_kernels.nvfp4_matmul.warps_sm90 import SWIZZLED, WARPGROUPS

SWIZZLED_TOKENS = swizzled(SLICE, jnp.bfloat16)


def run(
    x: Array,
    packed: Array,
    block_scale: Array,
    *vectors: Array,
    out_dtype: Any,
    config: FusedConfig,
    interpret: Any = None,
) -> Array:
    """As `warps_sm90.run`."""
    (m, k), n = x.shape, packed.shape[0]
    share = Share(m, k, n, config.tiles, config.groups)
    kernel = Kernel(share, config.stages, config.early, config.ahead or config.stages, config.cluster)
    extra = dict(out_dtype=out_dtype, cluster=config.cluster, interpret=interpret)
    return warps_sm90.launch(kernel, in_eights(x), packed, block_scale, *vectors, **extra)


@dataclasses.dataclass(frozen=True)
class Kernel(warps_sm90.Kernel):
    cluster: int

    def __call__(self, x_gmem, words_gmem, scales_gmem, *rest) -> None:
        *vectors_gmem, out_gmem = rest
        share = self.share
        stages = [
            plgpu.SMEM((self.stages, x_gmem.shape[0], SPAN), jnp.bfloat16, transforms=SWIZZLED_TOKENS),
            plgpu.SMEM((self.stages, share.rows, WORDS), jnp.int32, transforms=SWIZZLED),
            plgpu.SMEM((self.stages, share.rows, BLOCKS), jnp.int8),
        ]
        empty = dict(num_arrivals=WARPGROUPS, num_barriers=self.stages)
        warpgroups = WARPGROUPS * share.groups
        pl.run_scoped(
            functools.partial(self._roles, (x_gmem, words_gmem, scales_gmem), vectors_gmem, out_gmem),
            memory=plgpu.RefUnion(stages, plgpu.SMEM((SLICES * share.groups * share.plane,), jnp.float32)),
            full=plgpu.Barrier(num_arrivals=len(stages), num_barriers=self.stages),
            empty=plgpu.ClusterBarrier(collective_axes=("cluster",), **empty)
            if self.cluster > 1
            else plgpu.Barrier(**empty),
            multiplied=plgpu.Barrier(num_arrivals=warpgroups),
            summed=plgpu.Barrier(num_arrivals=warpgroups),
            collective_axes="wg",
        )

    def _roles(self, inputs, vectors_gmem, out_gmem, memory, **scratch) -> None:
        stages, scratch["sums_smem"] = memory
        wg, share = lax.axis_index("wg"), self.share
        warpgroups = WARPGROUPS * share.groups
        for_loading, for_decoding = (40, 232) if warpgroups == WARPGROUPS else (24, 112)
        if self.early:
            plgpu.griddepcontrol_launch_dependents()
            pl.when(wg == warpgroups)(functools.partial(self._prefetch, inputs))
            plgpu.griddepcontrol_wait()

        @pl.when(wg == warpgroups)
        def _load():
            plgpu.set_max_registers(for_loading, action="decrease")
            self._load(inputs, stages, scratch)

        @pl.when(wg != warpgroups)
        def _decode():
            plgpu.set_max_registers(for_decoding, action="increase")
            sums = self._staged_multiply(lax.div(wg, WARPGROUPS), stages, scratch)
            plgpu.barrier_arrive(scratch["multiplied"])
            plgpu.barrier_wait(scratch["multiplied"])
            self._finish(sums, vectors_gmem, out_gmem, scratch)

    def _tile(self) -> Array:
        tile = lax.axis_index("rows")
        return tile if self.cluster == 1 else tile * self.cluster + lax.axis_index("cluster")

    def _prefetch(self, inputs) -> None:
        rows = pl.ds(self._tile() * self.share.rows, self.share.rows)
        prefetch(inputs[1:], (WORDS, BLOCKS), rows, 0, min(self.stages, self.share.spans))

    def _load(self, inputs, stages, scratch) -> None:
        rows = pl.ds(self._tile() * self.share.rows, self.share.rows)
        whole = pl.ds(0, inputs[0].shape[0])
        shared = {"collective_axes": "cluster"} if self.cluster > 1 else {}

        @pl.loop(0, self.share.spans)
        def _span(i):
            slot = slot_to_fill(i, self.stages, self.ahead, scratch)
            copies = zip(inputs, stages, (whole, rows, rows), (SPAN, WORDS, BLOCKS), (shared, {}, {}), strict=True)
            for gmem, smem, lines, size, how in copies:
                source = gmem.at[lines, pl.ds(i * size, size)]
                plgpu.copy_gmem_to_smem(source, smem.at[slot], scratch["full"].at[slot], **how)

        if self.cluster > 1:
            self._drain(scratch)

    def _drain(self, scratch) -> None:
        """No CTA ends while another one has tokens for it, or waits for its word."""
        first = max(self.share.spans - self.stages, 0)

        @pl.loop(first, self.share.spans)
        def _span(i):
            plgpu.barrier_wait(scratch["empty"].at[lax.rem(i, self.stages)])

    def _staged_multiply(self, group: Array, stages, scratch) -> Array:
        groups = self.share.groups

        def span(i, sums):
            # As in `_multiply`: a slot is always the same group's.
            slot = lax.rem(i * groups + group, self.stages)
            plgpu.barrier_wait(scratch["full"].at[slot])
            sums = self._staged_products(sums, *(smem.at[slot] for smem in stages))
            if self.cluster > 1:
                ptx.wait_for_warpgroup()
            plgpu.barrier_arrive(scratch["empty"].at[slot])
            return sums

        return lax.fori_loop(0, lax.div(self.share.spans - group + groups - 1, groups), span, self._zeros())

    def _staged_products(self, sums: Array, x, words, scales) -> Array:
        arg_types = (self._sums.layout, plgpu.RefType(SWIZZLED_TOKENS), plgpu.RefType(SWIZZLED), ptx.REF)

        @plgpu.inline_mgpu(arg_types=arg_types, return_type=self._sums)
        def run(_, sums, x, words, scales):
            lane = Lane(self.share)
            tokens = lane.staged_tokens(x)
            return ptx.pack(multiply(ptx.unpack(sums), lane.weights(words, scales), tokens), "f")

        return run(sums, x, words, scales)
