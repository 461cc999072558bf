"""The register code of `products` and `softmax` as functions on Pallas values, for the kernel to call."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import ptx
from pallas_kernels.attention_int8 import products, totals
from pallas_kernels.attention_int8 import softmax as registers
from pallas_kernels.attention_int8.numbers import HEAD, ROWS
from pallas_kernels.attention_int8.tile import Tile
from pallas_kernels.ptx import REF, SCALAR, bag, pack, unpack

Ref = Any
Bag = jax.Array


@dataclasses.dataclass(frozen=True)
class Steps:
    """What one warpgroup does. O, P, S and the statistics (two maxima, two query scales) are bags of registers."""

    tile: Tile
    transforms: tuple[Any, Any, Any, Any]  # of Q, K, V and the staged output in shared memory

    @property
    def _o(self) -> Any:
        return bag(self.tile.outputs, "f")

    @property
    def _p(self) -> Any:
        return bag(self.tile.weights, "r")

    @property
    def _s(self) -> Any:
        return bag(self.tile.scores, self.tile.score_kind)

    @property
    def _refs(self) -> tuple[Any, Any, Any, Any]:
        return tuple(plgpu.RefType(transforms) for transforms in self.transforms)

    def start(self, q_scale: Ref, first_row: jax.Array) -> tuple[Bag, Bag]:
        """(O, statistics). `first_row` is where this warpgroup's rows begin in `q_scale`."""

        @plgpu.inline_mgpu(arg_types=(REF, SCALAR), return_type=(self._o, bag(4, "f")))
        def run(_, q_scale, first_row):
            row = ptx.add(unpack(first_row)[0], ptx.thread_row(), "r")
            scales = [ptx.load_global(q_scale, ptx.add(row, ptx.constant(r, "r"), "r")) for r in (0, 8)]
            o, top = registers.start(self.tile)
            return pack(o, "f"), pack(top + scales, "f")

        return run(q_scale, first_row)

    def first_scores(self, q: Ref, k: Ref, k_scale: Ref, block: jax.Array) -> tuple[Bag, Bag]:
        """(S, the scale of this block's keys)."""
        q_ref, k_ref, *_ = self._refs

        @plgpu.inline_mgpu(arg_types=(q_ref, k_ref, REF, SCALAR), return_type=(self._s, bag(1, "f")))
        def run(_, q, k, k_scale, block):
            scale = ptx.load_global(k_scale, unpack(block)[0])
            return pack(products.first_scores(self.tile, q, k), self.tile.score_kind), pack([scale], "f")

        return run(q, k, k_scale, block)

    def both(
        self, o: Bag, p: Bag, q: Ref, k: Ref, v: Ref, warpgroup: jax.Array, k_scale: Ref, block: jax.Array
    ) -> tuple[Bag, Bag, Bag]:
        """(O with this block's P·V, S of the next block, the scale of its keys)."""
        arg_types = (self._o.layout, self._p.layout, *self._refs[:3], SCALAR, REF, SCALAR)

        @plgpu.inline_mgpu(arg_types=arg_types, return_type=(self._o, self._s, bag(1, "f")))
        def run(_, o, p, q, k, v, warpgroup, k_scale, block):
            scale = ptx.load_global(k_scale, unpack(block)[0])  # early: it takes longer than the products
            o, s = products.both(self.tile, unpack(o), unpack(p), q, k, v, unpack(warpgroup)[0])
            return pack(o, "f"), pack(s, self.tile.score_kind), pack([scale], "f")

        return run(o, p, q, k, v, warpgroup, k_scale, block)

    def softmax(self, s: Bag, o: Bag, statistics: Bag, k_scale: Bag, valid: int | None) -> tuple[Bag, Bag, Bag]:
        """(O, P, statistics). `valid` keys of this block exist; `None` is all, or that V says so by zeros."""
        arg_types = (self._s.layout, self._o.layout, bag(4, "f").layout, bag(1, "f").layout)

        @plgpu.inline_mgpu(arg_types=arg_types, return_type=(self._o, self._p, bag(4, "f")))
        def run(_, s, o, statistics, k_scale):
            *top, scale, scale_8 = unpack(statistics)
            both = [ptx.multiply(x, unpack(k_scale)[0]) for x in (scale, scale_8)]
            count = None if valid is None else ptx.constant(valid, "r")
            o, p, top = registers.softmax(self.tile, unpack(s), unpack(o), top, both, count)
            return pack(o, "f"), pack(p, "r"), pack([*top, scale, scale_8], "f")

        return run(s, o, statistics, k_scale)

    def clear_totals(self, memory: Ref) -> None:
        run = plgpu.inline_mgpu(arg_types=(self._refs[3],))
        run(lambda _, memory: totals.clear(self.tile, memory))(memory)

    def promote(self, o: Bag, statistics: Bag, memory: Ref) -> Bag:
        """An empty O: it is in the totals now."""
        return self._on_totals(totals.promote, o, statistics, memory)

    def final_sums(self, o: Bag, statistics: Bag, memory: Ref) -> Bag:
        return self._on_totals(totals.final, o, statistics, memory)

    def _on_totals(self, function: Callable[..., list[Any]], o: Bag, statistics: Bag, memory: Ref) -> Bag:
        arg_types = (self._o.layout, bag(4, "f").layout, self._refs[3])

        @plgpu.inline_mgpu(arg_types=arg_types, return_type=self._o)
        def run(_, o, statistics, memory):
            return pack(function(self.tile, memory, unpack(o), unpack(statistics)[:2]), "f")

        return run(o, statistics, memory)

    def last_outputs(self, o: Bag, p: Bag, v: Ref) -> Bag:
        @plgpu.inline_mgpu(arg_types=(self._o.layout, self._p.layout, self._refs[2]), return_type=self._o)
        def run(_, o, p, v):
            return pack(products.last_outputs(self.tile, unpack(o), unpack(p), v), "f")

        return run(o, p, v)

    def finish(
        self, o: Bag, statistics: Bag, v_scale: Ref, v_mean: Ref, first_channel: jax.Array
    ) -> tuple[jax.Array, Bag]:
        """(softmax·V in f32, log-sum-exp of the two rows)."""
        out = plgpu.ShapeDtypeStruct((ROWS, HEAD), jnp.float32, layout=plgpu.Layout.WGMMA)
        arg_types = (self._o.layout, bag(4, "f").layout, REF, REF, SCALAR)

        @plgpu.inline_mgpu(arg_types=arg_types, return_type=(out, bag(2, "f")))
        def run(_, o, statistics, v_scale, v_mean, first_channel):
            o, lse = registers.finish(self.tile, unpack(o), unpack(statistics)[:2])
            lane = ptx.thread_column()
            channel = ptx.add(ptx.add(lane, lane, "r"), unpack(first_channel)[0], "r")
            offsets = [ptx.constant(8 * t + j, "r") for t in range(HEAD // 8) for j in (0, 1)]
            places = [ptx.add(channel, offset, "r") for offset in offsets]
            scale, mean = ([ptx.load_global(ref, place) for place in places] for ref in (v_scale, v_mean))
            scaled = [ptx.fma(x, *(vector[i // 4 * 2 + i % 2] for vector in (scale, mean))) for i, x in enumerate(o)]
            return ptx.accumulator(scaled, HEAD), pack(lse, "f")

        return run(o, statistics, v_scale, v_mean, first_channel)

    def store_lse(self, ref: Ref, lse: Bag, first: jax.Array, rows: jax.Array) -> None:
        """Rows of this warpgroup from `first` on in a flat array; of them `rows` exist."""

        @plgpu.inline_mgpu(arg_types=(REF, bag(2, "f").layout, SCALAR, SCALAR))
        def run(_, ref, lse, first, rows):
            for r, x in zip((0, 8), unpack(lse), strict=True):
                row = ptx.add(ptx.thread_row(), ptx.constant(r, "r"), "r")
                text = (
                    "{{ .reg .pred p; setp.lt.s32 p, {i[0]}, {i[1]}; setp.eq.and.s32 p, {i[2]}, 0, p; "
                    "selp.s32 {o[0]}, 1, 0, p; }}"
                )
                here = ptx.op(text, "r", ("r", row), ("r", unpack(rows)[0]), ("r", ptx.thread_column()))
                ptx.store_global(ref, ptx.add(unpack(first)[0], row, "r"), x, here)

        run(ref, lse, first, rows)

    def wait_for_both(self) -> None:
        """Until both warpgroups are here."""
        plgpu.inline_mgpu()(lambda _: products.wait_for_both())()

    def give_first_turn(self, warpgroup: jax.Array) -> None:
        plgpu.inline_mgpu(arg_types=(SCALAR,))(lambda _, wg: products.give_first_turn(unpack(wg)[0]))(warpgroup)

    def take_last_turn(self, warpgroup: jax.Array) -> None:
        plgpu.inline_mgpu(arg_types=(SCALAR,))(lambda _, wg: products.take_last_turn(unpack(wg)[0]))(warpgroup)
