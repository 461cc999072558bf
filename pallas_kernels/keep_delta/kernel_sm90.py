"""y - x kept, measured, and y put where x lay, on Hopper, in one pass: three arrays read, two written.

As passes of XLA's that is eight: the delta goes to memory of its own before it goes to its slot, which XLA must not
write while it reads what the slot holds, and the loop over layers copies y to where it keeps x. Here a lane reads
sixteen bytes of each array before it writes any of them, and nobody else touches those; so both results take the place
of what is not needed any more.

A warp takes `tiles` of 256 values in a row. While one is worked on, `ahead` more are under way: 1.5 KB a tile, of as
many warps as fit on an SM. Ten instructions a value are 16 µs of the schedulers for 32760 × 1536, where the bytes take
113. Sums are added up by lane, then by warp, and those of the warps by XLA: always in the same order.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import ptx
from pallas_kernels.keep_delta.config import KeepDeltaConfig
from pallas_kernels.keep_delta.warp import SUMS, Division, Warp
from pallas_kernels.mosaic import launch_in_place


def run(x: Array, y: Array, deltas: Array, place: Array, *, config: KeepDeltaConfig) -> tuple[Array, Array, Array]:
    _check(config)
    division = Division(deltas.shape[0], *x.shape, config)
    sums = lax.empty((SUMS, division.warps), jnp.float32)
    grid = {"cta": division.ctas}
    y, deltas, sums = launch_in_place(
        Kernel(division), (x, deltas, sums), y, place[None], grid=grid, warpgroups=config.warpgroups
    )
    return y, deltas, sums.sum(1)


def _check(config: KeepDeltaConfig) -> None:
    for name, value, most in (
        ("tiles", config.tiles, 32),
        ("ahead", config.ahead, 8),
        ("warpgroups", config.warpgroups, 8),
    ):
        if not 1 <= value <= most:
            raise ValueError(f"keep_delta: config.{name} = {value}, expected 1 to {most}")


@dataclasses.dataclass(frozen=True)
class Kernel:
    division: Division

    def __call__(self, *gmem) -> None:
        @plgpu.inline_mgpu(arg_types=(ptx.SCALAR, *[ptx.REF] * len(gmem)))
        def step(_, cta, *refs):
            Warp(self.division, ptx.unpack(cta)[0], *refs).run()

        step(lax.axis_index("cta"), *gmem)
