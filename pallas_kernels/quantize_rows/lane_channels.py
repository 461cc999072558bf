"""Factor and offset of every channel in shared memory, in the order the lanes of `warps_sm90` want them.

Warps take other rows but the same columns round after round, so they are brought once. As they lie in device memory,
four lanes would read from the same banks; here those of a chunk's half lie next to each other, sixteen bytes a lane.
A lane that has the same channels in several rows reads them once for all of these.
"""

from pallas_kernels import ptx
from pallas_kernels.integers import below, least, plus, remainder, times, times_plus
from pallas_kernels.ptx import Value
from pallas_kernels.quantize_rows import registers as regs
from pallas_kernels.quantize_rows.changes import Pairs
from pallas_kernels.quantize_rows.config import GROUP
from pallas_kernels.quantize_rows.division import Division, Place, address
from pallas_kernels.quantize_rows.registers import CHUNK, CHUNKS

_LINE = 32 * 16  # bytes of a warp's lanes
_UNIT = 2 * CHUNKS * _LINE  # of one vector, for a unit


def channel_bytes(division: Division) -> int:
    return 2 * _vector_bytes(division)


def _vector_bytes(division: Division) -> int:
    return _UNIT * (division.channel_units if division.config.warps == 1 else division.team_units)


class LaneChannels:
    """`rows` tells which columns the chunks of a lane are."""

    def __init__(self, place: Place, rows, factor: Value, offset: Value, memory: Value) -> None:
        self.place, self.division, self.rows, self.vectors = place, place.division, rows, (factor, offset)
        part = times_plus(place.first_unit, _UNIT, ptx.shared_address(memory))
        self.memory = times_plus(place.lane, 16, part)

    def begin(self) -> None:
        """Units are shared out to the teams."""
        for first in range(0, self.division.channel_units, self.division.teams):
            self._bring(plus(self.place.team, first))
        ptx.emit("bar.sync 0;", volatile=True)

    def _bring(self, unit: Value) -> None:
        division, place = self.division, self.place
        group = place.group_of(unit)
        column = times_plus(remainder(group, division.row_groups), GROUP, times(place.quarter, self.rows.lane_columns))
        exists = below(group, division.groups)
        to, wanted = times_plus(unit, _UNIT, self.memory), below(unit, least(place.units, division.channel_units))
        zero, fours = ptx.constant(0, "r"), []
        for i, vector in enumerate(self.vectors):
            origin = address(vector, zero, 0, column, 4)
            for line in range(2 * CHUNKS):
                offset = 4 * (self.rows.chunk_column(line // 2) + CHUNK // 2 * (line % 2))
                four = ptx.load_sixteen("ld.global.nc", ("l", origin), offset, exists)
                fours.append((i * _vector_bytes(division) + line * _LINE, four))
        for offset, four in fours:
            regs.store_shared_where(to, offset, four, wanted)

    def of_chunk(self, unit: int, q: int) -> Pairs:
        first = unit * _UNIT + 2 * q * _LINE
        vectors = [
            [
                x
                for half in (0, _LINE)
                for x in ptx.load_shared(self.memory, i * _vector_bytes(self.division) + first + half)
            ]
            for i in range(2)
        ]
        return list(zip(*vectors, strict=True))
