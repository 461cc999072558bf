"""Which error threshold makes a recipe as wide as wanted, checked on real runs.

    share of predicted errors above it --threshold--> a run --its real width--> a better share, until it is close enough

Beside a delta cache the predictor alone does not say how wide a run will be: what is computed again after a skip has
eight bits, or more where it is purified, and what is skipped counts as none.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

ROUNDS = 6
CLOSE = 0.03  # bits


@dataclasses.dataclass(frozen=True)
class Width:
    """`bits`: of the run at that threshold."""

    error_threshold: float
    bits: float


def find_threshold(
    predicted: Float[np.ndarray, "..."], first: float, target: float, spread: float, run: Callable[[float], float]
) -> Width:
    """The threshold whose run came closest to `target` bits; the search begins at `first`.

    `predicted`: errors, as many as tell which share of them lies above a threshold. `spread`: bits between all routes
    low and all high. Where no threshold is narrow or wide enough, the narrowest or the widest.

    >>> errors = np.linspace(0, 1, 101)
    >>> round(find_threshold(errors, 0.5, 6.0, 4.0, lambda threshold: 5 + 3 * (1 - threshold)).bits, 1)
    6.0
    """
    share, slope = float((predicted > first).mean()), spread
    tried: list[tuple[float, Width]] = []
    for _ in range(ROUNDS):
        threshold = float(np.quantile(predicted, 1 - share)) if tried else first
        tried.append((share, Width(threshold, run(threshold))))
        missing = target - tried[-1][1].bits
        slope = _slope(tried[-2:], slope, spread)
        better = min(1.0, max(0.0, share + missing / slope))
        if abs(missing) <= CLOSE or better == share:
            break
        share = better
    return min((width for _, width in tried), key=lambda each: abs(each.bits - target))


def _slope(tried: Sequence[tuple[float, Width]], known: float, most: float) -> float:
    """Bits by which a run gets wider from a share of 0 to 1: of the last two runs, if they say one that can be."""
    (share, width), (last_share, last_width) = tried[0], tried[-1]
    if last_share == share:
        return known
    return min(most, max((last_width.bits - width.bits) / (last_share - share), most / 16))
