"""What can be tuned, and a choice for every shape."""

import dataclasses
from pathlib import Path

from pallas_kernels.tables import lookup

TABLE = Path(__file__).with_name("tuned.json")

LANE = 8  # values of a lane: sixteen bytes
TILE = 32 * LANE  # of a warp, next to each other


@dataclasses.dataclass(frozen=True)
class KeepDeltaConfig:
    """A warp has three times 512 bytes under way for each tile that is `ahead`, as many warps as registers allow.

    More tiles a warp take more registers, and 8 to 16 of them up to three times as long: 0.45 to 1.4 ms at a width of
    5120, where two take 0.44.
    """

    tiles: int = 2  # of a warp, one after the other
    ahead: int = 1  # tiles on their way while one is worked on
    warpgroups: int = 1  # in a CTA


def choose_config(m: int, k: int, kind: str) -> KeepDeltaConfig:
    """Tuned if this case was measured on this kind of device, else the same for all."""
    return lookup(TABLE, kind, case_name(m, k), KeepDeltaConfig) or KeepDeltaConfig()


def case_name(m: int, k: int) -> str:
    return f"m{m} k{k}"
