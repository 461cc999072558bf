"""NVFP4 × NVFP4 on Blackwell's tensor cores, which apply the block scales themselves.

NEVER RUN: no Blackwell GPU was at hand. It lowers in every supported jax and compiles to sm_100a machine code without
spills; results and speed are unknown. `api.w4a4_matmul` does not choose it.

One CTA makes a tile of 128 × 128. A ring of `stages` slots holds 256 columns of both operands with their scales; the
scales go on to tensor memory, where the products find them and leave their sums. The scales of tensors and tokens are
applied outside.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.mosaic import ceil_div, launch_grid

TILE = 128  # rows of either side: the height of tensor memory
STEP = 256  # columns a slot: 128 bytes of codes
BLOCK = 16
STAGES = 4
# The hardware reads scales in squares of 128 rows by 4 blocks, the four quarters of the rows beside each other.
SQUARE = (32, 16)
SQUARES = STEP // BLOCK // 4


def run(x_packed: Array, x_scale: Array, w_packed: Array, w_scale: Array) -> Array:
    """Σ of code × block scale products, f32 (m, n); packed u8 (rows, k/2), scales e4m3 (rows, k/16), k % 256 == 0."""
    m, n, k = x_packed.shape[0], w_packed.shape[0], 2 * x_packed.shape[1]
    call = launch_grid(
        Kernel(k),
        jax.ShapeDtypeStruct((m, n), jnp.float32),
        grid={"m": ceil_div(m, TILE), "n": ceil_div(n, TILE)},
        warpgroups=1,
    )
    return call(_codes(x_packed), _codes(w_packed), swizzled_scales(x_scale), swizzled_scales(w_scale))


def _codes(packed: Array) -> Array:
    """u8 (rows, k/2), low nibble first, as e2m1 (rows, k)."""
    return lax.bitcast_convert_type(packed, jnp.float4_e2m1fn).reshape(packed.shape[0], -1)


def swizzled_scales(scale: Array) -> Array:
    """(rows, blocks) to (rows / 128, blocks / 4, 32, 16): scale [32 q + r, 4 j + c] of a tile is at [j, r, 4 q + c]."""
    rows, blocks = scale.shape
    padded = jnp.pad(scale, ((0, -rows % TILE), (0, 0)))
    squares = padded.reshape(-1, 4, 32, blocks // 4, 4)
    return squares.transpose(0, 3, 2, 1, 4).reshape(-1, blocks // 4, *SQUARE)


@dataclasses.dataclass(frozen=True)
class Kernel:
    k: int

    @property
    def steps(self) -> int:
        return self.k // STEP

    def __call__(self, x_gmem, w_gmem, x_scale_gmem, w_scale_gmem, out_gmem) -> None:
        stages = min(STAGES, self.steps)
        codes = (plgpu.TilingTransform((8, STEP)), plgpu.SwizzleTransform(128))
        operand = plgpu.SMEM((stages, TILE, STEP), jnp.float4_e2m1fn, transforms=codes)
        scales = plgpu.SMEM((stages, 1, SQUARES, *SQUARE), jnp.float8_e4m3fn)
        scales_tmem = plgpu.TMEM((TILE, STEP // BLOCK), jnp.float8_e4m3fn, layout=plgpu.TMEMLayout.SCALES_LAYOUT)
        rows = (plgpu.TilingTransform((8, 32)), plgpu.SwizzleTransform(128))
        pl.run_scoped(
            functools.partial(self._tile, (x_gmem, w_gmem, x_scale_gmem, w_scale_gmem), out_gmem),
            x_smem=operand,
            w_smem=operand,
            x_scale_smem=scales,
            w_scale_smem=scales,
            x_scale_tmem=scales_tmem,
            w_scale_tmem=scales_tmem,
            acc_tmem=plgpu.TMEM((TILE, TILE), jnp.float32),
            out_smem=plgpu.SMEM((TILE, TILE), jnp.float32, transforms=rows),
            full=plgpu.Barrier(num_arrivals=4, num_barriers=stages),
            empty=plgpu.Barrier(num_barriers=stages, orders_tensor_core=True),
            collective_axes="wg",
        )

    def _tile(self, sources, out_gmem, **scratch) -> None:
        stages = scratch["x_smem"].shape[0]
        m, n = lax.axis_index("m"), lax.axis_index("n")
        send = functools.partial(self._send, sources, m, n, scratch)
        for slot in range(stages):
            send(slot, slot)

        @pl.loop(0, self.steps)
        def _step(step):
            slot = lax.rem(step, stages)
            plgpu.barrier_wait(scratch["full"].at[slot])
            self._multiply(slot, step > 0, scratch)

            # The slot before is free once its product is done, which this step's need not be for it.
            @pl.when((step > 0) & (step - 1 + stages < self.steps))
            def _refill():
                before = lax.rem(step - 1, stages)
                plgpu.barrier_wait(scratch["empty"].at[before])
                send(step - 1 + stages, before)

        self._await_products(stages, scratch)
        scratch["out_smem"][...] = plgpu.async_load_tmem(scratch["acc_tmem"])
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(scratch["out_smem"], out_gmem.at[pl.ds(m * TILE, TILE), pl.ds(n * TILE, TILE)])
        plgpu.wait_smem_to_gmem(0)

    def _send(self, sources, m, n, scratch, step, slot) -> None:
        x_gmem, w_gmem, x_scale_gmem, w_scale_gmem = sources
        full, columns = scratch["full"].at[slot], pl.ds(step * STEP, STEP)
        squares = pl.ds(step * SQUARES, SQUARES)
        for name, source, tile in (("x_smem", x_gmem, m), ("w_smem", w_gmem, n)):
            plgpu.copy_gmem_to_smem(source.at[pl.ds(tile * TILE, TILE), columns], scratch[name].at[slot], full)
        for name, source, tile in (("x_scale_smem", x_scale_gmem, m), ("w_scale_smem", w_scale_gmem, n)):
            plgpu.copy_gmem_to_smem(source.at[pl.ds(tile, 1), squares], scratch[name].at[slot], full)

    def _multiply(self, slot, accumulate, scratch) -> None:
        # Copies and products are issued by one thread and run in its order, so one set of scales is enough.
        for name in ("x_scale", "w_scale"):
            plgpu.async_copy_scales_to_tmem(scratch[f"{name}_smem"].at[slot], scratch[f"{name}_tmem"])
        plgpu.tcgen05_mma(
            scratch["acc_tmem"],
            scratch["x_smem"].at[slot],
            scratch["w_smem"].at[slot].T,
            scratch["empty"].at[slot],
            a_scale=scratch["x_scale_tmem"],
            b_scale=scratch["w_scale_tmem"],
            accumulate=accumulate,
        )

    def _await_products(self, stages: int, scratch) -> None:
        """The products that no refill has waited for: those of the last `stages` steps, in order."""

        @pl.loop(self.steps - stages, self.steps)
        def _last(step):
            plgpu.barrier_wait(scratch["empty"].at[lax.rem(step, stages)])
