"""What one warp of `kernel_sm90` does, in instructions."""

import dataclasses

from pallas_kernels import ptx
from pallas_kernels.integers import at_least, below, integer, least, plus, times, times_plus
from pallas_kernels.keep_delta.config import LANE, TILE, KeepDeltaConfig
from pallas_kernels.mosaic import ceil_div
from pallas_kernels.ptx import Value
from pallas_kernels.quantize_rows import registers as regs

WARPS = 4  # in a warpgroup
LANES = 32
SUMS = 4  # |delta|, |x|, |delta - old|, |old|
BYTES = 2  # of a value


@dataclasses.dataclass(frozen=True)
class Division:
    slots: int
    m: int
    k: int
    config: KeepDeltaConfig

    @property
    def tiles(self) -> int:
        return self.m * self.k // TILE

    @property
    def ctas(self) -> int:
        return ceil_div(self.tiles, self.config.tiles * WARPS * self.config.warpgroups)

    @property
    def warps(self) -> int:
        return self.ctas * WARPS * self.config.warpgroups

    @property
    def whole(self) -> bool:
        """Every warp has all of its tiles."""
        return self.warps * self.config.tiles == self.tiles


class Warp:
    """It is told where arrays begin."""

    def __init__(
        self, division: Division, cta: Value, x: Value, deltas: Value, sums: Value, y: Value, place: Value
    ) -> None:
        self.division, self.out = division, sums
        thread = ptx.thread_in_cta()
        self.lane = integer("and.b32 {o[0]}, {i[0]}, 31;", thread)
        in_cta = integer("shr.u32 {o[0]}, {i[0]}, 5;", thread)
        self.warp = times_plus(cta, WARPS * division.config.warpgroups, in_cta)
        self.tile = times(self.warp, division.config.tiles)
        first = times_plus(self.lane, LANE, times(self.tile, TILE))
        slot = self._slot(deltas, ptx.load_global(place, ptx.constant(0, "r"), "r"))
        self.x, self.y = (ptx.global_address(array, first, BYTES) for array in (x, y))
        text = f"mad.wide.u32 {{o[0]}}, {{i[0]}}, {BYTES}, {{i[1]}};"
        self.delta = ptx.op(text, "l", ("r", first), ("l", slot))

    def _slot(self, deltas: Value, place: Value) -> Value:
        """Where it begins. All deltas together have more bytes than 32 bits count."""
        division = self.division
        place = least(at_least(place, 0), division.slots - 1)
        start = ptx.global_address(deltas, ptx.constant(0, "r"), BYTES)
        text = f"{{{{ .reg .b64 p; mul.wide.u32 p, {{i[0]}}, {division.m * division.k}; "
        text += f"mad.lo.s64 {{o[0]}}, p, {BYTES}, {{i[1]}}; }}}}"
        return ptx.op(text, "l", ("r", place), ("l", start))

    def run(self) -> None:
        tiles, ahead = self.division.config.tiles, self.division.config.ahead
        under_way = [self._load(tile) for tile in range(min(ahead, tiles))]
        sums = [ptx.constant(0.0, "f")] * SUMS
        for tile in range(tiles):
            if tile + ahead < tiles:
                under_way.append(self._load(tile + ahead))
            sums = self._finish(tile, under_way.pop(0), sums)
        self._store(sums)

    def _load(self, tile: int) -> tuple[Value | None, list[list[Value]]]:
        """Whether the tile exists, and x, y and the old delta in it; zeros where it does not."""
        here = None if self.division.whole else self._exists(tile)
        # x and the delta are written in this kernel, so they may not come by the path of what is only read.
        ways = (("ld.global", self.x), ("ld.global.nc.L1::no_allocate", self.y), ("ld.global", self.delta))
        return here, [ptx.load_sixteen(way, ("l", at), tile * TILE * BYTES, here) for way, at in ways]

    def _exists(self, tile: int) -> Value:
        return below(plus(self.tile, tile), self.division.tiles)

    def _finish(self, tile: int, loaded: tuple[Value | None, list[list[Value]]], sums: list[Value]) -> list[Value]:
        """Store one tile, and add to the sums."""
        here, (x, y, old) = loaded
        before, after, last = ([value for word in words for value in regs.as_floats(word)] for words in (x, y, old))
        delta = [ptx.subtract(a, b) for a, b in zip(after, before, strict=True)]
        change = [ptx.subtract(a, b) for a, b in zip(delta, last, strict=True)]
        pairs = [ptx.to_bf16(delta[i : i + 2]) for i in range(0, LANE, 2)]
        regs.store(self.delta, tile * TILE * BYTES, pairs, here)
        regs.store(self.x, tile * TILE * BYTES, y, here)
        return [_add_magnitudes(total, each) for total, each in zip(sums, (delta, before, change, last), strict=True)]

    def _store(self, sums: list[Value]) -> None:
        """Lane i those of sum i."""
        distances = [1, 2, 4, 8, 16]
        totals = [ptx.across_lanes(total, "f", ptx.add, distances) for total in sums]
        mine = totals[0]
        for i in range(1, SUMS):
            text = "{{ .reg .pred p; setp.eq.s32 p, {i[0]}, {i[1]}; selp.b32 {o[0]}, {i[2]}, {i[3]}, p; }}"
            ins = ("r", self.lane), ("r", ptx.constant(i, "r")), ("f", totals[i]), ("f", mine)
            mine = ptx.op(text, "f", *ins)
        place = times_plus(self.lane, self.division.warps, self.warp)
        ptx.store_global(self.out, place, mine, below(self.lane, SUMS))


def _add_magnitudes(total: Value, values: list[Value]) -> Value:
    for value in values:
        text = "{{ .reg .f32 a; abs.f32 a, {i[1]}; add.rn.f32 {o[0]}, {i[0]}, a; }}"
        total = ptx.op(text, "f", ("f", total), ("f", value))
    return total
