"""Activations to INT8 with a row in the registers of a warp, on Hopper; of a warpgroup, if it is long.

The other structure, `kernel_sm90`, brings rows into shared memory and every value twice through the tensor cores, and
its warpgroups wait for each other three times a block: on an H200 43 to 55 % of copy bandwidth, rotated or not. Here a
warp reads its row once, at once and whole, in sixteen bytes a lane, keeps it as bf16 in registers, and stores codes and
scales itself. Warps wait for nobody, or for the other three of their warpgroup once a row, so that some load while
others calculate. What a rotated value costs is 11 instructions, a plain one 5; 17 fit in the time its bytes take.

For what leaves x as it is: no norm, no channels, no activation function; one scale a row.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir.dialects import arith

from pallas_kernels import ptx
from pallas_kernels.mosaic import ceil_div, device_facts, launch_grid
from pallas_kernels.ptx import Value
from pallas_kernels.quantize_rows import registers as regs
from pallas_kernels.quantize_rows.config import GROUP, QuantizeRowsConfig
from pallas_kernels.quantize_rows.registers import CHUNK, CHUNKS, GROUPS
from pallas_kernels.quantize_rows.spec import INT8_MAX, SMALLEST_AMAX, Spec

WARPS = 4  # in a warpgroup
_TIMES, _MAD = "mul.lo.s32 {o[0]}, {i[0]}, {i[1]};", "mad.lo.s32 {o[0]}, {i[0]}, {i[1]}, {i[2]};"


def supports(spec: Spec) -> bool:
    return not spec.changes and not spec.grouped and spec.form == "int8"


def run(x: Array, *, spec: Spec, config: QuantizeRowsConfig) -> tuple[Array, ...]:
    """Codes s8 (m, k); scale, Σ|x| and max|x| f32 (m,)."""
    m, k = x.shape
    kernel = Kernel(m, k, spec, config, device_facts()[1])
    vector = jax.ShapeDtypeStruct((m,), jnp.float32)
    call = launch_grid(
        kernel,
        (jax.ShapeDtypeStruct((m, k), jnp.int8), vector, vector, vector),
        grid={"sm": kernel.sms},
        warpgroups=config.warpgroups,
    )
    return call(x)


@dataclasses.dataclass(frozen=True)
class Kernel:
    m: int
    k: int
    spec: Spec
    config: QuantizeRowsConfig
    sms: int

    @property
    def teams(self) -> int:
        """In a CTA: what takes `rows` rows at a time."""
        return WARPS * self.config.warpgroups // self.config.warps

    @property
    def rounds(self) -> int:
        return ceil_div(ceil_div(self.m, self.config.rows), self.teams * self.sms)

    @property
    def row_groups(self) -> int:
        return self.k // GROUP

    @property
    def groups(self) -> int:
        """A warp takes; the last warp of a row may find fewer."""
        return ceil_div(self.config.rows * self.row_groups, self.config.warps)

    @property
    def units(self) -> int:
        return ceil_div(self.groups, GROUPS)

    def __call__(self, x_gmem, codes_gmem, *vectors_gmem) -> None:
        pl.run_scoped(
            functools.partial(self._rounds, x_gmem, codes_gmem, vectors_gmem),
            plgpu.SMEM((2 * self.config.warpgroups * WARPS * 4,), jnp.float32),
            collective_axes="wg",
        )

    def _rounds(self, x_gmem, codes_gmem, vectors_gmem, met_smem) -> None:
        refs = (x_gmem, codes_gmem, *vectors_gmem, met_smem)

        @plgpu.inline_mgpu(arg_types=(plgpu.Layout.WG_SPLAT, plgpu.Layout.WG_SPLAT, *[plgpu.RefType()] * 6))
        def team(ctx, i, sm, *refs):
            Warp(self, i.registers.item(), sm.registers.item(), *refs).run()

        @pl.loop(0, self.rounds)
        def _round(i):
            team(i, lax.axis_index("sm"), *refs)


class Warp:
    """The instructions of one warp, written out: nothing here is a loop in the kernel."""

    def __init__(self, kernel: Kernel, i: Value, sm: Value, x, codes, scale, total, largest, met) -> None:
        self.kernel, self.spec, self.config = kernel, kernel.spec, kernel.config
        self.x, self.codes, self.vectors, self.met = x, codes, (scale, total, largest), met
        lane = ptx.op("mov.u32 {o[0]}, %laneid;", "r")
        warp = ptx.op("{{ .reg .b32 a; mov.u32 a, %tid.x; shr.u32 {o[0]}, a, 5; }}", "r")
        self.round, self.lane, self.warp = i, lane, warp
        self.group = regs.integer("shr.u32 {o[0]}, {i[0]}, {i[1]};", lane, 2)
        self.quarter = regs.integer("and.b32 {o[0]}, {i[0]}, {i[1]};", lane, 3)
        self.part = regs.integer("rem.u32 {o[0]}, {i[0]}, {i[1]};", warp, self.config.warps)
        taken = regs.integer("div.u32 {o[0]}, {i[0]}, {i[1]};", warp, self.config.warps)
        # Neighbouring SMs take neighbouring rows, and none has more than one team's share more than another.
        taken = regs.integer(_MAD, regs.integer(_MAD, i, kernel.teams, taken), kernel.sms, sm)
        self.row = regs.integer(_TIMES, taken, self.config.rows)
        self.pair = regs.thread_signs()
        self.signs = regs.product_with(self.pair)

    def run(self) -> None:
        """In the last round some teams find no row."""
        with utils.when(arith.cmpi(arith.CmpIPredicate.slt, self.row, ptx.constant(self.kernel.m, "r"))):
            self._take_rows()

    def _take_rows(self) -> None:
        units = [self._load(unit) for unit in range(self.kernel.units)]
        measured = [self._measure(words) for words in units]
        rows = [self._row_results(row, measured) for row in range(self.config.rows)]
        if self.config.warps > 1:
            rows = [self._meet(*rows[0])]
        scales = [self._scale(amax) for amax, _, _ in rows]
        if self.spec.rotate:
            # The products are made again, not kept: their f32 results would not fit. This says so to the compiler, by a
            # sign that it cannot know to be 0.
            text = "{{ .reg .b32 a; mov.b32 a, {i[1]}; shr.u32 a, a, 31; or.b32 {o[0]}, {i[0]}, a; }}"
            signs = ptx.op(text, "r", ("r", self.pair), ("f", rows[0][0]))
            self.signs = regs.product_with(signs)
        for unit, words in enumerate(units):
            self._store(unit, words, self._of_unit(unit, [inverse for _, inverse in scales]))
        for row, ((_, total, largest), (scale, _)) in enumerate(zip(rows, scales, strict=True)):
            self._store_vectors(row, scale, total, largest)

    # Places.

    def _exists(self, unit: int) -> Value | None:
        """Whether this lane's group of a unit does; `None` if it always does."""
        kernel, last = self.kernel, (unit + 1) * GROUPS
        one = ptx.constant(1, "r")
        here = one
        if last > kernel.groups:
            here = self._below(self.group, kernel.groups - unit * GROUPS, here)
        if kernel.groups * self.config.warps != self.config.rows * kernel.row_groups:
            group = ptx.add(self._first_group(), ptx.constant(unit * GROUPS, "r"), "r")
            here = self._below(ptx.add(group, self.group, "r"), kernel.row_groups, here)
        if kernel.m % self.config.rows:
            rows = self._rows_of_lane(unit)
            here = self._below(rows, kernel.m, here)
        return None if here is one else here

    def _first_group(self) -> Value:
        return regs.integer(_TIMES, self.part, self.kernel.groups)

    def _rows_of_lane(self, unit: int) -> Value:
        inside = regs.integer(
            "div.u32 {o[0]}, {i[0]}, {i[1]};",
            ptx.add(self.group, ptx.constant(unit * GROUPS, "r"), "r"),
            self.kernel.row_groups,
        )
        return ptx.add(self.row, inside, "r") if self.config.warps == 1 else self.row

    def _below(self, x: Value, bound: int, and_: Value) -> Value:
        text = "{{ .reg .pred p; setp.lt.s32 p, {i[0]}, {i[1]}; selp.b32 {o[0]}, {i[2]}, 0, p; }}"
        return ptx.op(text, "r", ("r", x), ("r", ptx.constant(bound, "r")), ("r", and_))

    def _address(self, ref, size: int) -> Value:
        """Of this lane's first value."""
        inside = regs.integer(_TIMES, ptx.add(self._first_group(), self.group, "r"), GROUP)
        inside = ptx.add(inside, regs.integer(_TIMES, self.quarter, CHUNK), "r")
        text = (
            "{{ .reg .b64 p, q; mul.wide.s32 p, {i[1]}, {i[2]}; cvt.s64.s32 q, {i[3]}; add.s64 p, p, q; "
            f"mad.lo.s64 p, p, {size}, {{i[0]}}; cvta.to.global.u64 {{o[0]}}, p; }}}}"
        )
        width = ptx.constant(self.kernel.k, "r")
        return ptx.op(text, "l", ("l", ptx.address(ref)), ("r", self.row), ("r", width), ("r", inside))

    @functools.cached_property
    def _from(self) -> Value:
        return self._address(self.x, 2)

    @functools.cached_property
    def _to(self) -> Value:
        return self._address(self.codes, 1)

    # Steps.

    def _load(self, unit: int) -> list[Value]:
        exists, words = self._exists(unit), []
        for q in range(CHUNKS):
            offset = 2 * (unit * GROUPS * GROUP + q * regs.LANES * CHUNK)
            words += regs.load(self._from, offset, exists)
        return words

    def _measure(self, words: list[Value]) -> tuple[Value, Value, Value]:
        """Of a lane's group: the largest magnitude of what is encoded, Σ|x|, and max|x| as a bf16 pair."""
        magnitudes = regs.magnitudes(words)
        pair = functools.reduce(regs.max_of_pairs, magnitudes)
        total = regs.sum_by_product(magnitudes)
        if not self.spec.rotate:
            return None, total, pair
        amax = ptx.constant(0.0, "f")
        for half in (0, 1):
            for a, b in regs.nearly_rotated(_chunks(words), half, self.signs, ptx.add, ptx.subtract):
                # The larger of |a + b| and |a - b| is |a| + |b|.
                for pair_of_last in zip(a, b, strict=True):
                    amax = regs.max_magnitude(amax, regs.sum_of_magnitudes(*pair_of_last))
        return amax, total, pair

    def _row_results(self, row: int, measured) -> tuple[Value, Value, Value]:
        """Over the warp: amax, Σ|x|, max|x| of one of its rows."""
        first, last = row * self.kernel.row_groups, (row + 1) * self.kernel.row_groups
        if self.config.warps > 1:
            last = self.kernel.units * GROUPS
        mine = [
            (self._within(unit, first, last), values)
            for unit, values in enumerate(measured)
            if unit * GROUPS < last and (unit + 1) * GROUPS > first
        ]
        zero, amax = ptx.constant(0.0, "f"), None
        totals = [regs.where(here, total, zero) for here, (_, total, _) in mine]
        total = ptx.across_lanes(functools.reduce(ptx.add, totals), "f", ptx.add, (4, 8, 16))
        none = ptx.constant(0, "r")
        pairs = [regs.where(here, pair, none, "r") for here, (_, _, pair) in mine]
        largest = regs.warp_max(regs.larger_of_pair(functools.reduce(regs.max_of_pairs, pairs)))
        if not self.spec.rotate:
            return largest, total, largest
        amax = functools.reduce(regs.max_magnitude, [regs.where(here, values[0], zero) for here, values in mine])
        return regs.warp_max(amax), total, largest

    def _within(self, unit: int, first: int, last: int) -> Value | None:
        """Whether a lane's group of a unit is one of these; `None` if all are."""
        begins, ends = unit * GROUPS, (unit + 1) * GROUPS
        if first <= begins and ends <= last:
            return None
        here = self._below(self.group, min(last, ends) - begins, ptx.constant(1, "r"))
        if first <= begins:
            return here
        before = self._below(self.group, first - begins, ptx.constant(1, "r"))
        return regs.integer("xor.b32 {o[0]}, {i[0]}, {i[1]};", here, before)

    def _meet(self, amax: Value, total: Value, largest: Value) -> tuple[Value, Value, Value]:
        """With the other warps of the row. Two places in turn: a warp may still read what met in the last round."""
        mine = regs.integer(_TIMES, self.warp, 16)
        turn = regs.integer("and.b32 {o[0]}, {i[0]}, {i[1]};", self.round, 1)
        address = regs.integer(_MAD, turn, 16 * WARPS * self.config.warpgroups, ptx.shared_address(self.met))
        ptx.store_shared(ptx.add(address, mine, "r"), 0, [amax, total, largest, largest])
        utils.warpgroup_barrier()
        first = regs.integer("and.b32 {o[0]}, {i[0]}, {i[1]};", mine, -16 * WARPS)
        row = ptx.add(address, first, "r")
        parts = [ptx.load_shared(row, 16 * i)[:3] for i in range(WARPS)]
        combine = (regs.max_magnitude, ptx.add, regs.max_magnitude)
        return tuple(functools.reduce(f, part) for f, part in zip(combine, zip(*parts, strict=True), strict=True))

    def _scale(self, amax: Value) -> tuple[Value, Value]:
        """The arithmetic of `code_scale`."""
        norm = np.float32(GROUP**-0.5 if self.spec.rotate else 1.0)
        of = lambda x: ptx.constant(float(x), "f")
        scale = ptx.multiply(amax, of(np.float32((GROUP**-0.5 if self.spec.rotate else 1.0) / INT8_MAX)))
        text = "{{ .reg .pred p; setp.lt.f32 p, {i[0]}, {i[1]}; selp.f32 {o[0]}, 0f3F800000, {i[2]}, p; }}"
        smallest = of(np.float32(SMALLEST_AMAX))
        scale = ptx.op(text, "f", ("f", ptx.multiply(amax, of(norm))), ("f", smallest), ("f", scale))
        return scale, ptx.op("div.rn.f32 {o[0]}, {i[0]}, {i[1]};", "f", ("f", of(norm)), ("f", scale))

    def _of_unit(self, unit: int, by_row: list[Value]) -> Value:
        """Each lane's: that of the row its group belongs to."""
        value = by_row[0]
        for row in range(1, len(by_row)):
            first = row * self.kernel.row_groups
            if first < (unit + 1) * GROUPS:
                before = (
                    None
                    if first <= unit * GROUPS
                    else self._below(self.group, first - unit * GROUPS, ptx.constant(1, "r"))
                )
                value = by_row[row] if before is None else regs.where(before, value, by_row[row])
        return value

    def _store(self, unit: int, words: list[Value], inverse: Value) -> None:
        exists, pairs = self._exists(unit), self._code_pairs(_chunks(words), inverse)
        for q, four in enumerate(pairs):
            codes = [regs.together(*four[:2]), regs.together(*four[2:])]
            regs.store(self._to, unit * GROUPS * GROUP + q * regs.LANES * CHUNK, codes, exists)

    def _code_pairs(self, chunks: list[list[Value]], inverse: Value) -> list[list[Value]]:
        """Of each word, its two codes."""
        if not self.spec.rotate:
            return [[regs.codes_of(regs.as_floats(word), inverse) for word in chunk] for chunk in chunks]
        pairs = [[None] * 4 for _ in chunks]
        for half in (0, 1):
            for q, values in enumerate(regs.rotated(chunks, half, self.signs, ptx.add, ptx.subtract)):
                pairs[q][half], pairs[q][2 + half] = (regs.codes_of(pair, inverse) for pair in values)
        return pairs

    def _store_vectors(self, row: int, *values: Value) -> None:
        """By lane 0 of the row's first warp."""
        lane = regs.integer("or.b32 {o[0]}, {i[0]}, {i[1]};", self.lane, self.part)
        here = self._below(lane, 1, ptx.constant(1, "r"))
        index = ptx.add(self.row, ptx.constant(row, "r"), "r")
        if self.kernel.m % self.config.rows:
            here = self._below(index, self.kernel.m, here)
        for ref, value in zip(self.vectors, values, strict=True):
            ptx.store_global(ref, index, value, here)


def _chunks(words: list[Value]) -> list[list[Value]]:
    return [words[4 * q : 4 * q + 4] for q in range(CHUNKS)]
