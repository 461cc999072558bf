"""Which rows the warps of `warps_sm90` take: all of them, each once, whoever begins late."""

import numpy as np
import ptx_integers
import pytest

from pallas_kernels import ptx
from pallas_kernels.quantize_rows import QuantizeRowsConfig, division
from pallas_kernels.quantize_rows.division import Division, Place


@pytest.fixture(autouse=True)
def integers(monkeypatch):
    monkeypatch.setattr(ptx, "op", ptx_integers.op)
    monkeypatch.setattr(ptx, "constant", lambda x, kind: x)
    monkeypatch.setattr(ptx, "add", lambda x, y, kind: x + y)
    monkeypatch.setattr(division, "quotient", lambda x, divisor: x // divisor)
    monkeypatch.setattr(division, "remainder", lambda x, divisor: x % divisor)
    for name, instruction in (
        ("mul.lo.s32", lambda a, b: a * b),
        ("mad.lo.s32", lambda a, b, c: a * b + c),
        ("sub.s32", lambda a, b: a - b),
    ):
        monkeypatch.setitem(ptx_integers.INSTRUCTIONS, name, instruction)


def place_of(cta, warp, its):
    place = object.__new__(Place)
    place.division, place.cta, place.warp = its, cta, warp
    return place


def rounds_of(cta, its):
    """As `warps_sm90` loops."""
    return its.rounds if cta < its.sms else its.config.stretch


@pytest.mark.parametrize("late", [(0, 1), (1, 1), (3, 1), (4, 2), (9, 4), (50, 3)])
@pytest.mark.parametrize("config", [dict(rows=1, warps=1), dict(rows=2, warps=1), dict(rows=1, warps=4)], ids=str)
@pytest.mark.parametrize("m", [1, 64, 1003])
def test_every_row_is_taken_once(m, config, late):
    late, stretch = late
    its = Division(m, 1536, QuantizeRowsConfig(warpgroups=2, late=late, stretch=stretch, **config), sms=5)
    taken = np.zeros(m + 2 * its.ctas * its.warps, int)
    for cta in range(its.ctas):
        for warp in range(0, its.warps, its.config.warps):
            place = place_of(cta, warp, its)
            for i in range(rounds_of(cta, its)):
                if (first := int(place.row(i))) < m:
                    taken[first : first + its.config.rows] += 1
            # What is brought ahead, rounds that there are not, must be rows that there are not.
            assert all(place.row(rounds_of(cta, its) + j) >= m for j in range(4)), (cta, warp)
    assert (taken[:m] == 1).all()


def test_what_is_late_is_so_many_rounds():
    its = Division(32760, 5120, QuantizeRowsConfig(rows=1, warps=1, warpgroups=2, late=4, stretch=2), sms=132)
    assert its.rounds == 32 - 4
    assert its.ctas == 132 + -(-(32760 - 28 * 8 * 132) // 16)
