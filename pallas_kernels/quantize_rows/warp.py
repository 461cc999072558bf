"""The instructions of one warp of `warps_sm90` in one round, written out: nothing here is a loop in the kernel."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.experimental.mosaic.gpu import utils
from jaxlib.mlir.dialects import arith

from pallas_kernels import ptx
from pallas_kernels.integers import below, integer, plus, times, times_plus
from pallas_kernels.ptx import Value
from pallas_kernels.quantize_rows import blocks
from pallas_kernels.quantize_rows import registers as regs
from pallas_kernels.quantize_rows.changes import Norm, changed, norm_of
from pallas_kernels.quantize_rows.config import GROUP
from pallas_kernels.quantize_rows.division import WARPS, Place
from pallas_kernels.quantize_rows.lane_channels import LaneChannels
from pallas_kernels.quantize_rows.registers import CHUNKS, GROUPS
from pallas_kernels.quantize_rows.ring import Ring
from pallas_kernels.quantize_rows.spec import BLOCK, E2M1_MAX, E4M3_MAX, INT8_MAX, SMALLEST_AMAX, Spec
from pallas_kernels.quantize_rows.straight import Straight

ALL_LANES, GROUPS_APART, SAME_GROUP = (1, 2, 4, 8, 16), (4, 8, 16), (1, 2)


# Of a unit: what is kept of it, and amax, Σ|x| and max|x| of this lane's part of a group.
Measured = tuple[list[Any], tuple[Value | None, Value, Value]]


class Outputs(NamedTuple):
    """In device memory, of all rows."""

    codes: Any
    scale: Any
    total: Any
    largest: Any
    block_scale: Any = None


def meetings(spec: Spec) -> int:
    """How often the warps of a row tell each other something in a round."""
    return 2 if spec.norm else 1


class Warp:
    def __init__(
        self,
        spec: Spec,
        place: Place,
        i: Value,
        rows: Straight | Ring,
        channels: LaneChannels | None,
        outputs: Outputs,
        met: Value,
    ) -> None:
        self.spec, self.division, self.config = spec, place.division, place.division.config
        self.round, self.place, self.rows, self.row = i, place, rows, rows.row
        self.channels, self.outputs, self.met = channels, outputs, met

    def run(self) -> None:
        """In the last round some teams find no row."""
        with utils.when(arith.cmpi(arith.CmpIPredicate.slt, self.row, ptx.constant(self.division.m, "r"))):
            self._take_rows()

    def _take_rows(self) -> None:
        self.signs = regs.product_with(regs.thread_signs())
        self.rows.arrive()
        results = self._changed() if self.spec.changes else self._as_they_come()
        kept, measured = zip(*results, strict=True)
        rows = [self._row_results(row, measured) for row in range(self.config.rows)]
        self.rows.loaded()
        if not self._asks_early:
            self.rows.ask()
        if self.config.warps > 1:
            combine = (regs.max_magnitude, ptx.add, regs.max_magnitude)
            rows = [self._meet(rows[0], combine, 0)]
        if self.spec.grouped:
            scales = [None] * len(rows)
        else:
            scales = [self._scale(amax) for amax, _, _ in rows]
        self._by_unit(lambda unit: self._encode(unit, kept[unit], scales))
        self.rows.send()
        for row, ((_, total, largest), scale) in enumerate(zip(rows, scales, strict=True)):
            self._store_vectors(row, scale and scale[0], total, largest)

    def _by_unit(self, work: Callable[[int], Any], count: int | None = None) -> list[Any]:
        """What `work` makes of each unit, registers; zeros where this warp's part of a row does not have the last."""
        results: list[Any] = []
        for unit in range(count or self.division.units):
            here = self.place.takes(unit)
            make = functools.partial(work, unit)
            results.append(make() if here is None else ptx.when(here, make, results[0]))
        return results

    @property
    def _asks_early(self) -> bool:
        """For the next rows, before most of the work; what takes as long as their codes to leave comes first."""
        return self.spec.norm is not None

    # What is measured.

    def _as_they_come(self) -> list[Measured]:
        """What only some warps take is loaded where it is measured, in the same branch."""
        loaded = [self.rows.load(unit) for unit in range(self.division.common_units)]

        def measured(unit: int) -> Measured:
            words = loaded[unit] if unit < len(loaded) else self.rows.load(unit)
            kept, amax = self._kept(words)
            return kept, (amax, *self._seen(words))

        return self._by_unit(measured)

    def _seen(self, words: list[Value]) -> tuple[Value, Value]:
        """Of a lane's group: Σ|x|, and max|x| as a bf16 pair."""
        magnitudes = regs.magnitudes(words)
        return regs.sum_by_product(magnitudes), functools.reduce(regs.max_of_pairs, magnitudes)

    def _changed(self) -> list[Measured]:
        units = self._by_unit(self.rows.load)
        norms = self._norms(units) if self.spec.norm else None
        if self._asks_early:
            self.rows.ask()
        every = self.division.channel_units
        alike = lambda first: self._changed_alike(range(first, len(units), every), units, norms)
        by_first = self._by_unit(alike, every)
        return [by_first[unit % every][unit // every] for unit in range(len(units))]

    def _changed_alike(
        self, alike: Sequence[int], units: list[list[Value]], norms: list[Norm] | None
    ) -> list[Measured]:
        """Units of the same channels."""
        again = norms is not None and not self.config.keep
        words = [self.rows.load(unit) if again else units[unit] for unit in alike]
        of_units = [
            norms and tuple(self._of_unit(unit, by_row) for by_row in zip(*norms, strict=True)) for unit in alike
        ]
        channels = self.channels and functools.partial(self.channels.of_chunk, alike[0])
        out = changed(self.spec, words, of_units, channels)
        if not self.config.keep:
            for unit, (words, _, _) in zip(alike, out, strict=True):
                self.rows.put_back(unit, words)
        return [self._changed_and_measured(unit, *result) for unit, result in zip(alike, out, strict=True)]

    def _changed_and_measured(self, unit: int, words: list[Value], total: Value, largest: Value) -> Measured:
        """A norm and an offset make something of the zeros where there is no group."""
        here = self.place.exists(unit, self.row) if self.spec.norm or self.spec.affine else None
        (kept, amax), zero = self._kept(words), ptx.constant(0.0, "f")
        return kept, tuple(x and regs.where(here, x, zero) for x in (amax, total, largest))

    def _norms(self, units: list[list[Value]]) -> list[Norm]:
        """Of each row."""
        zero = ptx.constant(0.0, "f")
        total = lambda unit: regs.sum_by_product(units[unit]) if self.spec.norm == "layer" else zero
        totals = self._by_unit(total)
        squares = self._by_unit(lambda unit: regs.sum_of_squares(units[unit]))
        rows = [
            (self._row_sum(row, totals, GROUPS_APART), self._row_sum(row, squares, ALL_LANES))
            for row in range(self.config.rows)
        ]
        if self.config.warps > 1:
            rows = [self._meet(rows[0], (ptx.add, ptx.add), 1)]
        return [norm_of(*sums, self.division.k, self.spec) for sums in rows]

    def _kept(self, words: list[Value]) -> tuple[list[Any], Value | None]:
        """What codes are made of later, if that is to stay in registers, and the largest magnitude of what is encoded:
        `None` if it is max|x|, or a matter of each group."""
        of_codes, amax = words, None
        if self.spec.rotate and not self.spec.grouped:
            of_codes, amax = self._nearly_rotated(words), ptx.constant(0.0, "f")
            # The larger of |a + b| and |a - b| is |a| + |b|.
            for pair_of_last in (x for half in of_codes for a, b in half for x in zip(a, b, strict=True)):
                amax = regs.max_magnitude(amax, regs.sum_of_magnitudes(*pair_of_last))
        elif self.spec.changes and not self.spec.grouped:
            amax = regs.larger_of_pair(functools.reduce(regs.max_of_pairs, regs.magnitudes(words)))
        return (of_codes if self.config.keep else []), amax

    def _nearly_rotated(self, words: list[Value]) -> list[Any]:
        return [regs.nearly_rotated(_chunks(words), half, self.signs) for half in (0, 1)]

    def _of_row(self, row: int, by_unit: list[Any]) -> list[tuple[Value | None, Any]]:
        """Of the units that have groups of one of a warp's rows: which lanes' these are, and what there is of them."""
        first, last = row * self.division.row_groups, (row + 1) * self.division.row_groups
        if self.config.warps > 1:
            last = self.division.units * GROUPS
        return [
            (self.place.within(unit, first, last), values)
            for unit, values in enumerate(by_unit)
            if unit * GROUPS < last and (unit + 1) * GROUPS > first
        ]

    def _row_sum(self, row: int, by_unit: list[Value], distances: tuple[int, ...]) -> Value:
        zero = ptx.constant(0.0, "f")
        mine = [regs.where(here, x, zero) for here, x in self._of_row(row, by_unit)]
        return ptx.across_lanes(functools.reduce(ptx.add, mine), "f", ptx.add, distances)

    def _row_results(self, row: int, measured) -> tuple[Value, Value, Value]:
        """Over the warp: amax, Σ|x|, max|x| of one of its rows."""
        amaxes, totals, magnitudes = zip(*measured, strict=True)
        # Sums by products are the same in the four lanes of a group.
        total = self._row_sum(row, list(totals), ALL_LANES if self.spec.changes else GROUPS_APART)
        largest = regs.warp_max(self._largest(self._of_row(row, list(magnitudes))))
        if amaxes[0] is None:
            return largest, total, largest
        zero, mine = ptx.constant(0.0, "f"), self._of_row(row, list(amaxes))
        amax = functools.reduce(regs.max_magnitude, [regs.where(here, x, zero) for here, x in mine])
        return regs.warp_max(amax), total, largest

    def _largest(self, by_unit: list[tuple[Value | None, Value]]) -> Value:
        if self.spec.changes:
            zero = ptx.constant(0.0, "f")
            return functools.reduce(regs.max_magnitude, [regs.where(here, x, zero) for here, x in by_unit])
        none = ptx.constant(0, "r")
        pairs = [regs.where(here, pair, none, "r") for here, pair in by_unit]
        return regs.larger_of_pair(functools.reduce(regs.max_of_pairs, pairs))

    def _meet(self, values: tuple[Value, ...], combine: tuple[Any, ...], meeting: int) -> tuple[Value, ...]:
        """With the other warps of the row. Two places in turn: a warp may still read what met in the last round."""
        size, place = 16 * self.division.warps, self.place
        turn = integer("and.b32 {o[0]}, {i[0]}, {i[1]};", self.round, 1)
        first_of_meeting = plus(ptx.shared_address(self.met), 2 * size * meeting)
        row = times_plus(place.team, 16 * WARPS, times_plus(turn, size, first_of_meeting))
        four = [*values, *[values[-1]] * (4 - len(values))]
        ptx.store_shared(times_plus(place.part, 16, row), 0, four)
        utils.warpgroup_barrier()
        parts = [ptx.load_shared(row, 16 * i)[: len(values)] for i in range(WARPS)]
        return tuple(functools.reduce(f, part) for f, part in zip(combine, zip(*parts, strict=True), strict=True))

    # Codes.

    def _scale(self, amax: Value) -> tuple[Value, Value]:
        """The arithmetic of `code_scale`."""
        largest = E4M3_MAX * E2M1_MAX if self.spec.form == "nvfp4" else INT8_MAX
        norm = np.float32(GROUP**-0.5 if self.spec.rotate else 1.0)
        of = lambda x: ptx.constant(float(x), "f")
        scale = ptx.multiply(amax, of(np.float32((GROUP**-0.5 if self.spec.rotate else 1.0) / largest)))
        text = "{{ .reg .pred p; setp.lt.f32 p, {i[0]}, {i[1]}; selp.f32 {o[0]}, 0f3F800000, {i[2]}, p; }}"
        smallest = of(np.float32(SMALLEST_AMAX))
        scale = ptx.op(text, "f", ("f", ptx.multiply(amax, of(norm))), ("f", smallest), ("f", scale))
        return scale, ptx.op("div.rn.f32 {o[0]}, {i[0]}, {i[1]};", "f", ("f", of(norm)), ("f", scale))

    def _of_unit(self, unit: int, by_row: list[Value]) -> Value:
        """Each lane's: that of the row its group belongs to."""
        value = by_row[0]
        for row in range(1, len(by_row)):
            first = row * self.division.row_groups
            if first < (unit + 1) * GROUPS:
                before = None if first <= unit * GROUPS else below(self.place.group, first - unit * GROUPS)
                value = by_row[row] if before is None else regs.where(before, value, by_row[row])
        return value

    def _encode(self, unit: int, kept: list[Any], scales: list[Any]) -> None:
        pairs = self._values(unit, kept)
        if self.spec.grouped:
            inverse = self._group_scale(unit, pairs)
        else:
            inverse = self._of_unit(unit, [inverse for _, inverse in scales])
        if self.spec.form == "nvfp4":
            self.rows.store(unit, self._blocks(unit, pairs, inverse))
            return
        codes = [[regs.codes_of(pair, inverse) for pair in chunk] for chunk in pairs]
        self.rows.store(unit, [[regs.together(*four[:2]), regs.together(*four[2:])] for four in codes])

    def _values(self, unit: int, kept: list[Any]) -> list[list[Any]]:
        """What is encoded, in f32: by chunk, the two values of each of its words."""
        words = kept if self.config.keep else self.rows.load_again(unit, self.spec.changes)
        if not self.spec.rotate:
            return [[regs.as_floats(word) for word in chunk] for chunk in _chunks(words)]
        is_rotated = self.config.keep and not self.spec.grouped
        nearly = words if is_rotated else self._nearly_rotated(words)
        halves = [regs.last_level(half, ptx.add, ptx.subtract) for half in nearly]
        return [[*first, *second] for first, second in zip(*halves, strict=True)]

    def _group_scale(self, unit: int, pairs: list[list[Any]]) -> Value:
        """Stores that of a lane's group, by one lane of the four; what its values are multiplied by."""
        values = [x for chunk in pairs for pair in chunk for x in pair]
        amax = functools.reduce(regs.max_magnitude, values, ptx.constant(0.0, "f"))
        scale, inverse = self._scale(ptx.across_lanes(amax, "f", regs.max_magnitude, SAME_GROUP))
        ptx.store_global(self.outputs.scale, self._group_place(unit), scale, self._some_lanes(unit, 1))
        return inverse

    def _blocks(self, unit: int, pairs: list[list[Any]], factor: Value) -> list[list[Value]]:
        """Words of codes by chunk. Two chunks are a block; four lanes put the scales of theirs together."""
        words, scales, shift = [], [], times(self.place.quarter, 8)
        together = lambda a, b: integer("or.b32 {o[0]}, {i[0]}, {i[1]};", a, b)
        for q in range(0, CHUNKS, 2):
            block = [x for chunk in pairs[q : q + 2] for pair in chunk for x in pair]
            codes, bits = blocks.encoded(block, factor)
            words += [[code] for code in codes]
            mine = integer("shl.b32 {o[0]}, {i[0]}, {i[1]};", bits, shift)
            scales.append(ptx.across_lanes(mine, "r", together, SAME_GROUP))
        scale = regs.where(below(self.place.quarter, 1), scales[0], scales[1], "r")
        place = times_plus(self._group_place(unit), GROUP // BLOCK // 4, self.place.quarter)
        ptx.store_global(self.outputs.block_scale, place, scale, self._some_lanes(unit, 2), "r")
        return words

    def _group_place(self, unit: int) -> Value:
        """Of a lane's group among those of all rows."""
        return times_plus(self.row, self.division.row_groups, self.place.group_of(unit))

    def _some_lanes(self, unit: int, count: int) -> Value:
        """So many of the four of a group, if there is one."""
        exists = self.place.exists(unit, self.row)
        return below(self.place.quarter, count, 1 if exists is None else exists)

    def _store_vectors(self, row: int, scale: Value | None, total: Value, largest: Value) -> None:
        """By lane 0 of the row's first warp."""
        here = below(integer("or.b32 {o[0]}, {i[0]}, {i[1]};", self.place.lane, self.place.part), 1)
        index = plus(self.row, row)
        if self.division.last_rows_differ:
            here = below(index, self.division.m, here)
        vectors = [(self.outputs.total, total), (self.outputs.largest, largest)]
        for ref, value in vectors if scale is None else [(self.outputs.scale, scale), *vectors]:
            ptx.store_global(ref, index, value, here)


def _chunks(words: list[Value]) -> list[list[Value]]:
    return [words[4 * q : 4 * q + 4] for q in range(CHUNKS)]
