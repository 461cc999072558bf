"""x + Σ codes · scale over the layers of a store, on Hopper, in one pass.

A store is slots × tokens × columns; what is added up lies in as many places, far apart, and every code is read once. So
a warp takes 512 columns of one token, sixteen a lane, through all layers, and keeps their sums in registers: a load of
a warp is 512 bytes next to each other, those of neighbouring warps follow, and `ahead` layers are under way while as
many are added. Nothing waits for another warp, and there is no shared memory. x is read and written by the same lanes,
so the sums take its place: with memory of their own XLA would copy x before a step that may be skipped, an eighth more
bytes.

A code becomes an f32 by a byte permutation: u = code + 128 (its top bit flipped, four at a time) as the last byte of
2²³ is the number 2²³ + u, from which 2²³ + 128 is subtracted exactly. An fma follows: three instructions and a quarter
a code, and with loads, places, scales and the loop 4.1; in the time that the bytes of 30 layers of 32760 × 1536 take,
0.41 ms, the schedulers have 7.8. The hardware's own conversion of a byte runs at a quarter of their rate; and 2²³ left
in the sums until the end would save an instruction, and the last bits of the sums.

Lane l brings place and scale of layer l, and of l + 32 and so on; the others get them from it.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import ptx
from pallas_kernels.add_deltas.config import LANE, AddDeltasConfig
from pallas_kernels.add_deltas.warp import WORDS, Division, State, Warp
from pallas_kernels.mosaic import launch_in_place


def run(x: Array, codes: Array, scale: Array, places: Array, *, config: AddDeltasConfig) -> Array:
    _check(config)
    division = Division(codes.shape[0], *x.shape, places.shape[0], config)
    grid = {"cta": division.ctas}
    (y,) = launch_in_place(Kernel(division), (x,), codes, scale, places, grid=grid, warpgroups=config.warpgroups)
    return y


def _check(config: AddDeltasConfig) -> None:
    for name, value, most in (("warpgroups", config.warpgroups, 8), ("ahead", config.ahead, 16)):
        if not 1 <= value <= most:
            raise ValueError(f"add_deltas: config.{name} = {value}, expected 1 to {most}")


@dataclasses.dataclass(frozen=True)
class Kernel:
    division: Division

    def __call__(self, *gmem) -> None:
        division = self.division
        state = self._begin(gmem)
        state = lax.fori_loop(0, division.turns, lambda i, state: self._turn(i * division.ahead, state, gmem), state)
        self._end(jnp.int32(division.turns * division.ahead), state, gmem)

    # A warp's steps in its registers.

    def _begin(self, gmem) -> tuple[Array, Array]:
        @plgpu.inline_mgpu(arg_types=(ptx.SCALAR, *[ptx.REF] * len(gmem)), return_type=self._bags)
        def run(_, cta, *refs):
            return self._packed(self._warp(cta, refs).begin())

        return run(lax.axis_index("cta"), *gmem)

    def _turn(self, first: Array, state: tuple[Array, Array], gmem) -> tuple[Array, Array]:
        @plgpu.inline_mgpu(arg_types=self._arguments(gmem), return_type=self._bags)
        def run(_, cta, first, words, floats, *refs):
            ahead = self.division.ahead
            state = self._unpacked(words, floats)
            return self._packed(self._warp(cta, refs).turn(ptx.unpack(first)[0], state, ahead, ahead))

        return run(lax.axis_index("cta"), first, *state, *gmem)

    def _end(self, first: Array, state: tuple[Array, Array], gmem) -> None:
        @plgpu.inline_mgpu(arg_types=self._arguments(gmem))
        def run(_, cta, first, words, floats, *refs):
            self._warp(cta, refs).end(ptx.unpack(first)[0], self._unpacked(words, floats))

        run(lax.axis_index("cta"), first, *state, *gmem)

    def _arguments(self, gmem) -> tuple[Any, ...]:
        return ptx.SCALAR, ptx.SCALAR, *(bag.layout for bag in self._bags), *[ptx.REF] * len(gmem)

    def _warp(self, cta, refs) -> Warp:
        return Warp(self.division, ptx.unpack(cta)[0], *refs)

    @property
    def _bags(self) -> tuple[Any, Any]:
        division = self.division
        return ptx.bag(division.shares + WORDS * division.ahead, "r"), ptx.bag(division.shares + LANE, "f")

    @staticmethod
    def _packed(state: State) -> tuple[Any, Any]:
        return ptx.pack(state.places + state.words, "r"), ptx.pack(state.scales + state.sums, "f")

    def _unpacked(self, words, floats) -> State:
        shares, words, floats = self.division.shares, ptx.unpack(words), ptx.unpack(floats)
        return State(words[:shares], words[shares:], floats[:shares], floats[shares:])
