"""Rows on their way through shared memory, of one warp of `warps_sm90`.

Bulk copies bring the next `ahead` rows while one is calculated. Its codes are written where it lay, which is free once
all lanes have it in registers, and leave by a bulk copy: nothing waits for device memory but the first round, registers
hold one row only, and memory is read and written in whole lines, which four lanes that share a group cannot do. A warp
of four brings and sends its own part of a row.

Each lane reads its own sixteen bytes, half of a bank's turn away from its neighbour's, so that as they lie two groups
meet in the same half of the banks. Lanes of odd groups that take their chunks in another order (`crossed`) are in the
other half.

Chunks 2q and 2q + 1 of a lane are columns 64q + 16c to + 15, so that their codes are sixteen bytes. To the rotation the
order of what names a column (q, c, j) is all the same, as long as j comes last.
"""

import functools

from pallas_kernels import ptx
from pallas_kernels.integers import (
    at_least,
    below,
    least,
    minus,
    plus,
    positive,
    quotient,
    remainder,
    times,
    times_plus,
)
from pallas_kernels.mosaic import CTA_BYTES
from pallas_kernels.ptx import Value
from pallas_kernels.quantize_rows import registers as regs
from pallas_kernels.quantize_rows.config import GROUP
from pallas_kernels.quantize_rows.division import Division, Place, address
from pallas_kernels.quantize_rows.registers import CHUNK, CHUNKS, GROUPS, LANES

_BARRIER = 8  # bytes
_ROW = 2 * GROUP  # bytes of a group of a row
_OTHER = 4096  # bytes of shared memory for Mosaic GPU, and for what warps tell each other


def slots(division: Division) -> int:
    return division.config.ahead + 1


def slot_bytes(division: Division) -> int:
    """Of a team."""
    return _ROW * division.groups


def words(division: Division) -> tuple[int, int]:
    """Of all slots, and of their barriers."""
    memory, barriers = division.teams * slot_bytes(division), division.warps * _BARRIER
    return slots(division) * memory // 4, slots(division) * barriers // 4


def ring_bytes(division: Division) -> int:
    return 4 * sum(words(division))


def fits(division: Division, besides: int = 0) -> bool:
    """Beside so many bytes for something else."""
    return ring_bytes(division) + besides <= CTA_BYTES - _OTHER


class Ring:
    """`i` is the round; in round i the slot of i - 1 is filled for i + ahead."""

    lane_columns = 2 * CHUNK  # from a lane to the next

    def __init__(
        self, place: Place, i: Value, x: Value, codes: Value, memory: Value, barriers: Value, *, code_bits: int = 8
    ) -> None:
        self.place, self.division, self.i = place, place.division, i
        self.row, self.x, self.codes = place.row(i), x, codes
        self.slots, self.size = slots(self.division), slot_bytes(self.division)
        self.line, self.leader = GROUP * code_bits // 8, below(place.lane, 1)
        team = times_plus(place.team, self.slots * self.size, ptx.shared_address(memory))
        self.memory = times_plus(place.first_group, _ROW, team)  # of this warp's part of the first slot
        self.barriers = times_plus(place.warp, self.slots * _BARRIER, ptx.shared_address(barriers))

    @staticmethod
    def chunk_column(q: int) -> int:
        """Of a lane's first chunk and the others."""
        return q // 2 * 2 * LANES * CHUNK + q % 2 * CHUNK

    def begin(self) -> None:
        for slot in range(self.slots):
            _when(self.leader, f"mbarrier.init.shared::cta.b64 [{{i[0]}} + {_BARRIER * slot}], 1;", self.barriers)
        # To the copies these are writes of another kind.
        ptx.emit("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;", volatile=True)
        _sync()
        for j in range(self.division.config.ahead):
            self._fetch(ptx.constant(j, "r"))

    def arrive(self) -> None:
        parity = remainder(quotient(self.i, self.slots), 2)
        text = "{{ .reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [{i[0]}], {i[1]}; @!p bra again; }}"
        ptx.emit(text, "", [("r", self._barrier(self.i)), ("r", parity)], volatile=True)

    def load(self, unit: int) -> list[Value]:
        chunks = self._load(unit)
        return [word for q in range(0, CHUNKS, 2) for chunk in self._exchanged(*chunks[q : q + 2]) for word in chunk]

    def put_back(self, unit: int, words: list[Value]) -> None:
        """What is encoded instead of what came, for this lane to load again."""
        exists = self.place.exists(unit, self.row)
        for q, (place, offset) in enumerate(self._chunk_places(unit)):
            regs.store_shared_where(place, offset, words[4 * q : 4 * q + 4], exists)

    def load_again(self, unit: int, was_put_back: bool) -> list[Value]:
        """For its codes, which come to lie on units before it, or on itself."""
        words = [word for chunk in self._load(unit) for word in chunk] if was_put_back else self.load(unit)
        _sync()
        return words

    def _load(self, unit: int) -> list[list[Value]]:
        exists = self.place.exists(unit, self.row)
        return [
            ptx.load_sixteen("ld.shared", ("r", address), offset, exists)
            for address, offset in self._chunk_places(unit)
        ]

    def loaded(self) -> None:
        """Every lane has seen its values: codes may take their place."""
        _sync()

    def ask(self) -> None:
        """For row i + ahead, in the place of row i - 1, whose codes left from there."""
        _when(self.leader, "cp.async.bulk.wait_group.read 0;")
        self._fetch(plus(self.i, self.division.config.ahead))

    def store(self, unit: int, codes: list[list[Value]]) -> None:
        exists = self.place.exists(unit, self.row)
        halves = [[*codes[q], *codes[q + 1]] for q in range(0, CHUNKS, 2)]
        places = self._two_ways(self._lane(self.line), self.line // 2)
        for i, (place, words) in enumerate(zip(places, self._exchanged(*halves), strict=True)):
            offset = unit * GROUPS * self.line + i * self.line // 2
            regs.store_shared_where(place, offset, words, exists)

    def send(self) -> None:
        ptx.emit("fence.proxy.async.shared::cta;", volatile=True)
        _sync()
        codes = self._bytes(self.row, self.line)
        here = positive(codes, self.leader)
        inside = times(self.place.first_group, self.line)
        to = address(self.codes, self.row, self.division.row_groups * self.line, inside, 1)
        text = "cp.async.bulk.global.shared::cta.bulk_group [{i[0]}], [{i[1]}], {i[2]};"
        _when(here, text, ("l", to), self._slot(self.i), codes)
        _when(self.leader, "cp.async.bulk.commit_group;")

    def end(self) -> None:
        """Copies still read what goes away with the CTA."""
        _when(self.leader, "cp.async.bulk.wait_group.read 0;")

    def _fetch(self, j: Value) -> None:
        """What this warp takes in round j, if it takes anything then."""
        row, barrier = self.place.row(j), self._barrier(j)
        size, leads = self._bytes(row, _ROW), below(row, self.division.m, self.leader)
        _when(leads, "mbarrier.arrive.expect_tx.shared::cta.b64 a, [{i[0]}], {i[1]};", barrier, size)
        # Without a hint for the second-level cache: rows that are the first to leave it take 3 to 9 % longer.
        text = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [{i[0]}], [{i[1]}], {i[2]}, [{i[3]}];"
        inside = times(self.place.first_group, GROUP)
        origin = address(self.x, row, self.division.k, inside, 2)
        _when(positive(size, leads), text, self._slot(j), ("l", origin), size, barrier)

    # Places.

    def _turn(self, j: Value) -> Value:
        return remainder(j, self.slots)

    def _slot(self, j: Value) -> Value:
        return times_plus(self._turn(j), self.size, self.memory)

    def _barrier(self, j: Value) -> Value:
        return times_plus(self._turn(j), _BARRIER, self.barriers)

    def _lane(self, line: int) -> Value:
        """Of this lane's first value, or of its first code, where a group has so many bytes."""
        group, quarter = self.place.group, self.place.quarter
        return times_plus(group, line, times_plus(quarter, line // (2 * LANES), self._slot(self.i)))

    def _chunk_places(self, unit: int) -> list[tuple[Value, int]]:
        """Addresses and offsets; of an odd group's lane, if crossed, of the other chunk of two."""
        addresses = self._two_ways(self._lane(_ROW), 2 * CHUNK)
        first = unit * GROUPS * GROUP
        return [(addresses[q % 2], 2 * (first + self.chunk_column(q))) for q in range(CHUNKS)]

    def _two_ways(self, address: Value, apart: int) -> tuple[Value, Value]:
        """For the first and the second of two places so many bytes apart, which change places where lanes are crossed.

        The four lanes of two groups, eight that shared memory serves at a time, then have all banks between them.
        """
        if self._odd is None:
            return address, address
        return times_plus(self._odd, apart, address), times_plus(self._odd, -apart, address)

    def _exchanged(self, a: list[Value], b: list[Value]) -> tuple[list[Value], list[Value]]:
        if self._odd is None:
            return a, b
        choose = lambda x, y: [regs.where(self._odd, *pair, "r") for pair in zip(x, y, strict=True)]
        return choose(b, a), choose(a, b)

    @functools.cached_property
    def _odd(self) -> Value | None:
        """Whether this lane's group is; `None` if lanes are not crossed."""
        return remainder(self.place.group, 2) if self.division.config.crossed else None

    def _bytes(self, row: Value, line: int) -> Value:
        """Of what this warp takes of a round's rows, or of their codes, where a group has so many."""
        division, count = self.division, self.place.groups
        if division.last_rows_differ:
            rows = least(minus(division.m, row), division.config.rows)
            count = times(rows, division.row_groups) if division.config.warps == 1 else count
        return times(at_least(count, 0), line)


def _when(here: Value, text: str, *operands: Value | tuple[str, Value]) -> None:
    """An instruction where `here` is not 0."""
    ins = [x if isinstance(x, tuple) else ("r", x) for x in operands]
    begin = f"{{{{ .reg .pred p; .reg .b64 a; setp.ne.s32 p, {{i[{len(ins)}]}}, 0; @p "
    ptx.emit(begin + text + " }}", "", [*ins, ("r", here)], volatile=True)


def _sync() -> None:
    ptx.emit("bar.warp.sync 0xffffffff;", volatile=True)
