"""What can be tuned. Nothing has been: one choice for every shape."""

import dataclasses

LANE = 16  # codes of a lane: sixteen bytes
TILE = 32 * LANE  # of a warp, next to each other in one token's row


@dataclasses.dataclass(frozen=True)
class AddDeltasConfig:
    """How much is under way: at least `ahead` · 512 bytes a warp, of as many warps as registers allow."""

    warpgroups: int = 1  # in a CTA
    ahead: int = 4  # layers whose codes are on their way while one is added


DEFAULT = AddDeltasConfig()
