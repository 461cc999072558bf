"""Rows from device memory straight to the registers of `warps_sm90`, and codes straight back."""

import functools

from pallas_kernels.integers import times, times_plus
from pallas_kernels.ptx import Value
from pallas_kernels.quantize_rows import registers as regs
from pallas_kernels.quantize_rows.config import GROUP
from pallas_kernels.quantize_rows.division import Place, address
from pallas_kernels.quantize_rows.registers import CHUNK, CHUNKS, GROUPS, LANES


class Straight:
    """One warp's: chunk q of a lane is columns 32q + 8c + j, so that four lanes load 64 bytes next to each other."""

    lane_columns = CHUNK  # from a lane to the next

    def __init__(self, place: Place, i: Value, x: Value, codes: Value) -> None:
        self.place, self.row, self.x, self.codes = place, place.row(i), x, codes

    @staticmethod
    def chunk_column(q: int) -> int:
        """Of a lane's first chunk and the others."""
        return q * LANES * CHUNK

    @functools.cached_property
    def _from(self) -> Value:
        return self._address(self.x, 2)

    @functools.cached_property
    def _to(self) -> Value:
        return self._address(self.codes, 1)

    def _address(self, ref: Value, size: int) -> Value:
        """Of this lane's first value."""
        place = self.place
        inside = times_plus(place.first_group, GROUP, times_plus(place.group, GROUP, times(place.quarter, CHUNK)))
        return address(ref, self.row, place.division.k, inside, size)

    def load(self, unit: int) -> list[Value]:
        exists, words = self.place.exists(unit, self.row), []
        for q in range(CHUNKS):
            offset = 2 * (unit * GROUPS * GROUP + self.chunk_column(q))
            words += regs.load(self._from, offset, exists)
        return words

    def store(self, unit: int, codes: list[list[Value]]) -> None:
        exists = self.place.exists(unit, self.row)
        for q, pair in enumerate(codes):
            regs.store(self._to, unit * GROUPS * GROUP + self.chunk_column(q), pair, exists)

    def arrive(self) -> None: ...

    def loaded(self) -> None: ...

    def ask(self) -> None: ...

    def send(self) -> None: ...
