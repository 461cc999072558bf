"""Activations to INT8 with a row in the registers of a warp, on Hopper; of a warpgroup, if it is long.

The other structure, `kernel_sm90`, brings rows into shared memory and every value twice through the tensor cores, and
its warpgroups wait for each other three times a block: on an H200 43 to 55 % of copy bandwidth, rotated or not. Here a
warp has its row, or its quarter of one, in registers in sixteen bytes a lane. Warps wait for nobody, or for the other
three of their warpgroup once a row, so that some load while others calculate. What a rotated value costs is 8
instructions, a plain one 5; 17 fit in the time its bytes take.

Rows come and codes leave `straight`, which reached 72 to 77 % of copy bandwidth with 54 to 96 KB an SM under way, more
of them or fewer; or far ahead and in whole lines, through a `ring` in shared memory.

Without norm or channels; one scale a row.
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
from pallas_kernels.mosaic import device_facts, launch_grid
from pallas_kernels.ptx import Value
from pallas_kernels.quantize_rows import registers as regs
from pallas_kernels.quantize_rows import ring
from pallas_kernels.quantize_rows.activation import activated
from pallas_kernels.quantize_rows.config import GROUP, LEAST_WIDTH, QuantizeRowsConfig
from pallas_kernels.quantize_rows.division import WARPS, Division, Place, below, times, times_plus
from pallas_kernels.quantize_rows.registers import CHUNKS, GROUPS
from pallas_kernels.quantize_rows.ring import Ring
from pallas_kernels.quantize_rows.spec import INT8_MAX, SMALLEST_AMAX, Spec
from pallas_kernels.quantize_rows.straight import Straight


def supports(spec: Spec) -> bool:
    return not (spec.norm or spec.affine or spec.grouped) and spec.form == "int8"


def _check(division: Division) -> None:
    config = division.config
    if config.warps not in (1, WARPS) or (config.warps == WARPS and config.rows != 1):
        raise ValueError(
            f"quantize_rows: config has warps {config.warps}, rows {config.rows}: expected 1, or 4 and 1 row"
        )
    if config.ahead < 0:
        raise ValueError(f"quantize_rows: config.ahead = {config.ahead}, expected at least 0")
    if config.ahead and division.k < LEAST_WIDTH:
        raise ValueError(
            f"quantize_rows: config.ahead = {config.ahead} for k = {division.k}: needs {LEAST_WIDTH} or more"
        )
    if not (config.keep or config.ahead):
        raise ValueError("quantize_rows: config.keep is False, expected True if config.ahead = 0")
    if config.ahead and not ring.fits(division):
        size = ring.ring_bytes(division)
        raise ValueError(f"quantize_rows: config.ahead = {config.ahead} takes {size} bytes of shared memory a CTA")


def run(x: Array, *, spec: Spec, config: QuantizeRowsConfig) -> tuple[Array, ...]:
    """Codes s8 (m, k); scale, Σ|x| and max|x| f32 (m,)."""
    m, k = x.shape
    kernel = Kernel(spec, Division(m, k, config, device_facts()[1]))
    _check(kernel.division)
    vector = jax.ShapeDtypeStruct((m,), jnp.float32)
    call = launch_grid(
        kernel,
        (jax.ShapeDtypeStruct((m, k), jnp.int8), vector, vector, vector),
        grid={"sm": kernel.division.sms},
        warpgroups=config.warpgroups,
    )
    return call(x)


@dataclasses.dataclass(frozen=True)
class Kernel:
    spec: Spec
    division: Division

    @property
    def config(self) -> QuantizeRowsConfig:
        return self.division.config

    def __call__(self, x_gmem, codes_gmem, *vectors_gmem) -> None:
        division = self.division
        scratch = [plgpu.SMEM((2 * division.warps * 4,), jnp.float32)]
        if self.config.ahead:
            slots = division.warps * ring.slots(division)
            scratch += [plgpu.SMEM((slots * words,), jnp.int32) for words in (ring.slot_bytes(division) // 4, 2)]
        pl.run_scoped(functools.partial(self._rounds, x_gmem, codes_gmem, vectors_gmem), *scratch, collective_axes="wg")

    def _rounds(self, x_gmem, codes_gmem, vectors_gmem, met_smem, *ring_smem) -> None:
        refs, sm = (x_gmem, codes_gmem, *vectors_gmem, met_smem, *ring_smem), lax.axis_index("sm")

        def with_registers(step):
            @plgpu.inline_mgpu(arg_types=(ptx.SCALAR, ptx.SCALAR, *[ptx.REF] * len(refs)))
            def run(_, i, sm, x, codes, scale, total, largest, met, *ring_refs):
                (i,), (sm,) = ptx.unpack(i), ptx.unpack(sm)
                place = Place(self.division, sm)
                rows = Ring(place, i, x, codes, *ring_refs) if ring_refs else Straight(place, i, x, codes)
                step(Warp(self, i, place, rows, (scale, total, largest), met))

            return lambda i: run(i, sm, *refs)

        if self.config.ahead:
            with_registers(lambda warp: warp.rows.begin())(jnp.int32(0))
        pl.loop(0, self.division.rounds)(with_registers(Warp.run))
        if self.config.ahead:
            with_registers(lambda warp: warp.rows.end())(jnp.int32(0))


class Warp:
    """The instructions of one warp in one round, written out: nothing here is a loop in the kernel."""

    def __init__(self, kernel: Kernel, i: Value, place: Place, rows: Straight | Ring, vectors, met) -> None:
        self.kernel, self.spec, self.config, self.division = kernel, kernel.spec, kernel.config, kernel.division
        self.round, self.place, self.rows, self.row = i, place, rows, rows.row
        self.vectors, self.met = vectors, met

    @functools.cached_property
    def pair(self) -> Value:
        return regs.thread_signs()

    def run(self) -> None:
        """In the last round some teams find no row."""
        with utils.when(arith.cmpi(arith.CmpIPredicate.slt, self.row, ptx.constant(self.division.m, "r"))):
            self._take_rows()

    def _take_rows(self) -> None:
        self.signs = regs.product_with(self.pair)
        self.rows.arrive()
        units = [self.rows.load(unit) for unit in range(self.division.units)]
        units, seen = self._activated(units) if self.spec.activation else (units, [self._seen(u) for u in units])
        measured = [(self._amax(words), *totals) for words, totals in zip(units, seen, strict=True)]
        rows = [self._row_results(row, measured) for row in range(self.config.rows)]
        self.rows.loaded()
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
            words = words if self.config.keep else self.rows.load_again(unit)
            self._store(unit, words, self._of_unit(unit, [inverse for _, inverse in scales]))
        self.rows.send()
        for row, ((_, total, largest), (scale, _)) in enumerate(zip(rows, scales, strict=True)):
            self._store_vectors(row, scale, total, largest)

    def _seen(self, words: list[Value]) -> tuple[Value, Value]:
        """Of a lane's group: Σ|x|, and max|x| as a bf16 pair."""
        magnitudes = regs.magnitudes(words)
        return regs.sum_by_product(magnitudes), functools.reduce(regs.max_of_pairs, magnitudes)

    def _activated(self, units: list[list[Value]]) -> tuple[list[list[Value]], list[tuple[Value, Value]]]:
        """Units, and of each Σ|x| and max|x|, of this lane's part of a group."""
        found = [activated(words) for words in units]
        if not self.config.keep:
            for unit, (words, *_) in enumerate(found):
                self.rows.put_back(unit, words)
        return [words for words, *_ in found], [(total, largest) for _, total, largest in found]

    def _amax(self, words: list[Value]) -> Value | None:
        """The largest magnitude of what is encoded; `None` if it is max|x|."""
        if not self.spec.rotate:
            pair = functools.reduce(regs.max_of_pairs, regs.magnitudes(words))
            return regs.larger_of_pair(pair) if self.spec.activation else None
        amax = ptx.constant(0.0, "f")
        for half in (0, 1):
            for a, b in regs.nearly_rotated(_chunks(words), half, self.signs):
                # The larger of |a + b| and |a - b| is |a| + |b|.
                for pair_of_last in zip(a, b, strict=True):
                    amax = regs.max_magnitude(amax, regs.sum_of_magnitudes(*pair_of_last))
        return amax

    def _row_results(self, row: int, measured) -> tuple[Value, Value, Value]:
        """Over the warp: amax, Σ|x|, max|x| of one of its rows."""
        first, last = row * self.division.row_groups, (row + 1) * self.division.row_groups
        if self.config.warps > 1:
            last = self.division.units * GROUPS
        mine = [
            (self.place.within(unit, first, last), values)
            for unit, values in enumerate(measured)
            if unit * GROUPS < last and (unit + 1) * GROUPS > first
        ]
        zero = ptx.constant(0.0, "f")
        # Sums by products are the same in the four lanes of a group.
        distances = (1, 2, 4, 8, 16) if self.spec.activation else (4, 8, 16)
        totals = [regs.where(here, total, zero) for here, (_, total, _) in mine]
        total = ptx.across_lanes(functools.reduce(ptx.add, totals), "f", ptx.add, distances)
        largest = regs.warp_max(self._largest([(here, values[2]) for here, values in mine]))
        if mine[0][1][0] is None:
            return largest, total, largest
        amax = functools.reduce(regs.max_magnitude, [regs.where(here, values[0], zero) for here, values in mine])
        return regs.warp_max(amax), total, largest

    def _largest(self, by_unit: list[tuple[Value | None, Value]]) -> Value:
        if self.spec.activation:
            zero = ptx.constant(0.0, "f")
            return functools.reduce(regs.max_magnitude, [regs.where(here, x, zero) for here, x in by_unit])
        none = ptx.constant(0, "r")
        pairs = [regs.where(here, pair, none, "r") for here, pair in by_unit]
        return regs.larger_of_pair(functools.reduce(regs.max_of_pairs, pairs))

    def _meet(self, amax: Value, total: Value, largest: Value) -> tuple[Value, Value, Value]:
        """With the other warps of the row. Two places in turn: a warp may still read what met in the last round."""
        mine = times(self.place.warp, 16)
        turn = regs.integer("and.b32 {o[0]}, {i[0]}, {i[1]};", self.round, 1)
        address = times_plus(turn, 16 * self.division.warps, ptx.shared_address(self.met))
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
            first = row * self.division.row_groups
            if first < (unit + 1) * GROUPS:
                before = None if first <= unit * GROUPS else below(self.place.group, first - unit * GROUPS)
                value = by_row[row] if before is None else regs.where(before, value, by_row[row])
        return value

    def _store(self, unit: int, words: list[Value], inverse: Value) -> None:
        pairs = self._code_pairs(_chunks(words), inverse)
        self.rows.store(unit, [[regs.together(*four[:2]), regs.together(*four[2:])] for four in pairs])

    def _code_pairs(self, chunks: list[list[Value]], inverse: Value) -> list[list[Value]]:
        """Of each word, its two codes."""
        if not self.spec.rotate:
            return [[regs.codes_of(regs.as_floats(word), inverse) for word in chunk] for chunk in chunks]
        pairs = [[None] * 4 for _ in chunks]
        for half in (0, 1):
            for q, values in enumerate(regs.rotated(chunks, half, self.signs, ptx.add, ptx.subtract)):
                pairs[q][2 * half : 2 * half + 2] = (regs.codes_of(pair, inverse) for pair in values)
        return pairs

    def _store_vectors(self, row: int, *values: Value) -> None:
        """By lane 0 of the row's first warp."""
        here = below(regs.integer("or.b32 {o[0]}, {i[0]}, {i[1]};", self.place.lane, self.place.part), 1)
        index = ptx.add(self.row, ptx.constant(row, "r"), "r")
        if self.division.last_rows_differ:
            here = below(index, self.division.m, here)
        for ref, value in zip(self.vectors, values, strict=True):
            ptx.store_global(ref, index, value, here)


def _chunks(words: list[Value]) -> list[list[Value]]:
    return [words[4 * q : 4 * q + 4] for q in range(CHUNKS)]
