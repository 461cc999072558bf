"""Which rows, groups of 128 and columns a CTA, a warp and a lane take, in `warps_sm90`."""

import dataclasses
import math
from typing import Self

from pallas_kernels import ptx
from pallas_kernels.integers import below, integer, least, minus, plus, quotient, remainder, times, times_plus
from pallas_kernels.mosaic import ceil_div
from pallas_kernels.ptx import Value
from pallas_kernels.quantize_rows import registers as regs
from pallas_kernels.quantize_rows.config import GROUP, QuantizeRowsConfig
from pallas_kernels.quantize_rows.registers import GROUPS

WARPS = 4  # in a warpgroup


@dataclasses.dataclass(frozen=True)
class Division:
    m: int
    k: int
    config: QuantizeRowsConfig
    sms: int

    @property
    def warps(self) -> int:
        return WARPS * self.config.warpgroups

    @property
    def ctas(self) -> int:
        """One an SM, and those that begin late."""
        return self.sms + ceil_div(max(self.shares - self.early_shares, 0), self.teams * self.config.stretch)

    @property
    def teams(self) -> int:
        """In a CTA: what takes `rows` rows at a time."""
        return self.warps // self.config.warps

    @property
    def shares(self) -> int:
        """Of a team in a round: all there are."""
        return ceil_div(self.m, self.config.rows)

    @property
    def rounds(self) -> int:
        """Of a CTA that does not begin late."""
        return max(1, ceil_div(self.shares, self.teams * self.sms) - self.config.late)

    @property
    def early_shares(self) -> int:
        return self.rounds * self.teams * self.sms

    @property
    def row_groups(self) -> int:
        return self.k // GROUP

    @property
    def groups(self) -> int:
        """Of the rows a team takes."""
        return self.config.rows * self.row_groups

    @property
    def team_units(self) -> int:
        return ceil_div(self.groups, GROUPS)

    @property
    def common_units(self) -> int:
        """That every warp takes."""
        return self.team_units // self.config.warps

    @property
    def longer(self) -> int:
        """Parts of a row with a unit more than others: the first ones."""
        return self.team_units % self.config.warps

    @property
    def units(self) -> int:
        """That some warp takes."""
        return self.common_units + (self.longer > 0)

    @property
    def last_part(self) -> int:
        """Its first unit."""
        return self.team_units - self.common_units

    @property
    def channel_units(self) -> int:
        """After so many a lane's groups have the channels of the first again, in another of the warp's rows."""
        if self.config.warps > 1:
            return self.units
        return min(self.units, self.row_groups // math.gcd(self.row_groups, GROUPS))

    @property
    def last_rows_differ(self) -> bool:
        return self.m % self.config.rows != 0


class Place:
    """Of one warp of a CTA."""

    def __init__(self, division: Division, cta: Value, warp: Value, lane: Value) -> None:
        self.division, self.cta, self.warp, self.lane = division, cta, warp, lane
        self.group = integer("shr.u32 {o[0]}, {i[0]}, {i[1]};", lane, 2)
        self.quarter = integer("and.b32 {o[0]}, {i[0]}, {i[1]};", lane, 3)
        self.team = quotient(warp, division.config.warps)
        # An SM has a scheduler for every fourth warp: each gets longer parts of some teams.
        turned = plus(warp, self.team) if division.longer else warp
        self.part = remainder(turned, division.config.warps)
        before = least(self.part, division.longer)
        self.first_unit = times_plus(self.part, division.common_units, before)
        self.first_group = times(self.first_unit, GROUPS)

    @classmethod
    def of_thread(cls, division: Division, cta: Value) -> Self:
        lane = ptx.op("mov.u32 {o[0]}, %laneid;", "r")
        return cls(division, cta, ptx.op("{{ .reg .b32 a; mov.u32 a, %tid.x; shr.u32 {o[0]}, a, 5; }}", "r"), lane)

    @property
    def units(self) -> Value:
        """Of this warp."""
        longer = below(self.part, self.division.longer)
        return plus(longer, self.division.common_units)

    @property
    def groups(self) -> Value:
        """Of this warp, which the last part of a row may have fewer of than of eight a unit."""
        left = minus(self.division.groups, self.first_group)
        return least(left, times(self.units, GROUPS))

    def takes(self, unit: int) -> Value | None:
        """Whether this warp takes a unit that some do; `None` if all do."""
        return None if unit < self.division.common_units else below(self.part, self.division.longer)

    def group_of(self, unit: int | Value) -> Value:
        """This lane's of a unit, among those of its team's rows."""
        return times_plus(unit, GROUPS, plus(self.group, self.first_group))

    def row(self, i: Value) -> Value:
        """The first of a round; beyond the last of all in rounds that a CTA does not have.

        Neighbouring SMs take neighbouring rows, and none more than one team's share more. What is left, fast SMs take
        more of, in stretches.
        """
        division = self.division
        share = times_plus(times_plus(i, division.teams, self.team), division.sms, self.cta)
        if division.ctas > division.sms:
            is_early = below(self.cta, division.sms)
            counts = (ptx.constant(count, "r") for count in (division.rounds, division.config.stretch))
            share = regs.where(is_early, share, self._late_share(i), "r")
            share = regs.where(
                below(i, regs.where(is_early, *counts, "r")), share, ptx.constant(division.shares, "r"), "r"
            )
        return times(share, division.config.rows)

    def _late_share(self, i: Value) -> Value:
        division = self.division
        late = minus(self.cta, division.sms)
        share = times_plus(times_plus(late, division.config.stretch, i), division.teams, self.team)
        return plus(share, division.early_shares)

    def exists(self, unit: int, row: Value) -> Value | None:
        """Whether this lane's group of a unit that its warp takes does; `None` if it always does."""
        division, one = self.division, ptx.constant(1, "r")
        here = one
        if unit < division.common_units and (division.last_part + unit + 1) * GROUPS > division.groups:
            here = below(self.group_of(unit), division.groups, here)
        if division.last_rows_differ:
            inside = quotient(self.group_of(unit), division.row_groups)
            here = below(plus(row, inside), division.m, here)
        return None if here is one else here

    def within(self, unit: int, first: int, last: int) -> Value | None:
        """Whether a lane's group of a unit is one of these; `None` if all are."""
        begins, ends = unit * GROUPS, (unit + 1) * GROUPS
        if first <= begins and ends <= last:
            return None
        here = below(self.group, min(last, ends) - begins)
        if first <= begins:
            return here
        before = below(self.group, first - begins)
        return integer("xor.b32 {o[0]}, {i[0]}, {i[1]};", here, before)


def address(ref: Value, row: Value, width: int, inside: Value, size: int) -> Value:
    """In device memory, of the value `inside` values from the start of a row."""
    text = (
        "{{ .reg .b64 p, q; mul.wide.s32 p, {i[1]}, {i[2]}; cvt.s64.s32 q, {i[3]}; add.s64 p, p, q; "
        f"mad.lo.s64 p, p, {size}, {{i[0]}}; cvta.to.global.u64 {{o[0]}}, p; }}}}"
    )
    ins = [("l", ptx.address(ref)), ("r", row), ("r", ptx.constant(width, "r")), ("r", inside)]
    return ptx.op(text, "l", *ins)
