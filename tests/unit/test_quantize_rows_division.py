"""Which rows the warps of `warps_sm90` take, and which parts of them: all, each once, whoever begins late."""

import functools

import jax
import numpy as np
import ptx_integers
import pytest

from benchmarks.kernels import quantize_rows as benchmark
from pallas_kernels import integers, ptx
from pallas_kernels.quantize_rows import QuantizeRowsConfig
from pallas_kernels.quantize_rows.division import Division, Place
from pallas_kernels.quantize_rows.registers import GROUPS


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr(ptx, "op", ptx_integers.op)
    monkeypatch.setattr(ptx, "constant", lambda x, kind: x)
    monkeypatch.setattr(integers, "arith", ptx_integers.ARITH)


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
            place = Place(its, cta, warp, lane=0)
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


def of_four_warps(k, warpgroups):
    return Division(64, k, QuantizeRowsConfig(rows=1, warps=4, warpgroups=warpgroups), sms=1)


@pytest.mark.parametrize("k", [3200, 4096, 5120, 8960, 12800, 13824])
def test_warps_that_share_a_row_take_every_group_once(k):
    its = of_four_warps(k, 3)
    for team in range(its.teams):
        taken = np.zeros(its.row_groups, int)
        for warp in range(4 * team, 4 * team + 4):
            place = Place(its, 0, warp, lane=0)
            first, mine = int(place.first_group), int(place.groups)
            taken[first : first + mine] += 1
            assert first == GROUPS * place.first_unit and -(-mine // GROUPS) == place.units
        assert (taken == 1).all()


@pytest.mark.parametrize("k", [3200, 4096, 5120, 8960, 12800, 13824])
def test_a_lane_knows_whether_its_group_exists(k):
    its, lanes = of_four_warps(k, 2), range(0, 32, 4)  # the first of each group
    for warp in range(its.warps):
        places = [Place(its, 0, warp, lane) for lane in lanes]
        for unit in range(its.units):
            takes = places[0].takes(unit)
            assert (takes is None or bool(takes)) == (unit < places[0].units)
            if takes is not None and not takes:
                continue
            groups = [int(place.group_of(unit)) for place in places]
            assert groups == [places[0].first_group + GROUPS * unit + i for i in range(GROUPS)]
            here = [place.exists(unit, row=0) for place in places]
            assert [x is None or bool(x) for x in here] == [group < its.row_groups for group in groups]


@pytest.mark.parametrize("k", [8960, 13824])
def test_schedulers_get_as_many_longer_parts(k):
    """Every fourth warp is one scheduler's."""
    its = of_four_warps(k, 4)
    assert its.longer
    units = np.array([Place(its, 0, warp, lane=0).units for warp in range(its.warps)])
    assert (units.reshape(4, 4).sum(0) == its.team_units).all()


def test_rows_too_narrow_for_four_warps_are_refused():
    case = benchmark.Case("", 64, 3072, "plain")
    avals = jax.eval_shape(lambda: benchmark.random_operands(case))
    kernel = functools.partial(benchmark.run_kernel, case, config=QuantizeRowsConfig(rows=1, warps=4, ahead=1))
    with pytest.raises(ValueError, match=r"config\.warps = 4, expected 1 for k = 3072, below 3200"):
        jax.jit(kernel).trace(*avals).lower(lowering_platforms=("cuda",))
