"""x + Σ codes · scale over the layers of a store, on Hopper, at the speed its bytes allow.

A store is slots × tokens × columns; what is added up lies in as many places, far apart, and every code is read once. So
a warp takes 512 columns of one token, sixteen a lane, through all layers, and keeps their sums in registers: a load of
a warp is 512 bytes next to each other, those of neighbouring warps follow, and `ahead` layers are under way while one
is added. Nothing waits for another warp, and there is no shared memory. A warp beyond the last tile does that one
again, to the same bytes.

A code becomes an f32 by a byte permutation: u = code + 128 (its top bit flipped, four at a time) as the last byte of
2²³ is the number 2²³ + u, from which 2²³ + 128 is subtracted exactly. An fma follows, so a code takes three
instructions and a quarter, and loads, places and scales another quarter; of a GPU's schedulers 0.41 ms, the time the
bytes of 30 layers of 32760 × 1536 take, are about eight. (The conversion in the hardware takes four times as long as
any of them: by itself 0.42 ms. Leaving 2²³ in the sum until the end would save an instruction and the last bits of it.)

Lane l brings place and scale of layer l, and of l + 32 and so on; the others get them from it.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import ptx
from pallas_kernels.add_deltas.config import AddDeltasConfig
from pallas_kernels.add_deltas.warp import WARPS, Division, Warp
from pallas_kernels.mosaic import ceil_div, launch_grid


def run(x: Array, codes: Array, scale: Array, places: Array, *, config: AddDeltasConfig) -> Array:
    _check(config)
    division = Division(codes.shape[0], *x.shape, places.shape[0], config)
    ctas = ceil_div(division.tiles, WARPS * config.warpgroups)
    call = launch_grid(
        Kernel(division),
        jax.ShapeDtypeStruct(x.shape, jnp.bfloat16),
        grid={"cta": ctas},
        warpgroups=config.warpgroups,
    )
    return call(x, codes, scale, places)


def _check(config: AddDeltasConfig) -> None:
    for name, value, most in (("warpgroups", config.warpgroups, 8), ("ahead", config.ahead, 32)):
        if not 1 <= value <= most:
            raise ValueError(f"add_deltas: config.{name} = {value}, expected 1 to {most}")


@dataclasses.dataclass(frozen=True)
class Kernel:
    division: Division

    def __call__(self, *gmem) -> None:
        @plgpu.inline_mgpu(arg_types=(ptx.SCALAR, *[ptx.REF] * len(gmem)))
        def add(_, cta, *refs):
            (cta,) = ptx.unpack(cta)
            Warp(self.division, cta, *(ptx.address(ref) for ref in refs)).run()

        add(lax.axis_index("cta"), *gmem)
