"""What can be tuned, and a choice for every shape."""

import dataclasses
from pathlib import Path

from pallas_kernels.tables import lookup

TABLE = Path(__file__).with_name("tuned.json")

LANE = 16  # codes of a lane: sixteen bytes
TILE = 32 * LANE  # of a warp, next to each other in one token's row


@dataclasses.dataclass(frozen=True)
class AddDeltasConfig:
    """How much is under way: at least `ahead` · 512 bytes a warp, of as many warps as registers allow.

    With four ahead a lane takes 64 registers (72 for more than 32 layers), and an SM 32 warps, or 28.
    """

    warpgroups: int = 1  # in a CTA
    ahead: int = 4  # layers whose codes are on their way while as many are added


def choose_config(k: int, layers: int, kind: str) -> AddDeltasConfig:
    """Tuned if this case was measured on this kind of device, else the same for all."""
    return lookup(TABLE, kind, case_name(k, layers), AddDeltasConfig) or AddDeltasConfig()


def case_name(k: int, layers: int) -> str:
    return f"k{k} layers{layers}"
