"""Which error threshold makes a run as wide as wanted, from the widths that runs really had.

    share of predicted errors above it --threshold--> a run --its width--> a better share

Beside a delta cache the predictor alone does not say how wide a run will be: what is computed again after a skip has
eight bits, or more where it is purified.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass
class ThresholdSearch:
    """`predicted`: errors, as many as tell which share of them lies above a threshold. `threshold`: of the next run, at
    first a guess. `spread`: bits between all routes low and all high.

    >>> search = ThresholdSearch(np.linspace(0, 1, 101), threshold=0.5, spread=4.0)
    >>> for _ in range(4):
    ...     search.tell(5 + 3 * (1 - search.threshold), target=6.0)
    >>> round(search.threshold, 2)
    0.67
    """

    predicted: Float[np.ndarray, "..."]
    threshold: float
    spread: float

    def __post_init__(self) -> None:
        self._share, self._slope = float((self.predicted > self.threshold).mean()), self.spread
        self._told: list[tuple[float, float]] = []

    def tell(self, bits: float, target: float) -> None:
        """The run at `threshold` was `bits` wide. Where no threshold gives the target: the narrowest or the widest."""
        self._told.append((self._share, bits))
        self._slope = _slope(self._told[-2:], self._slope, self.spread)
        self._share = min(1.0, max(0.0, self._share + (target - bits) / self._slope))
        self.threshold = float(np.quantile(self.predicted, 1 - self._share))


def _slope(told: Sequence[tuple[float, float]], known: float, most: float) -> float:
    """Bits by which runs get wider from a share of 0 to 1: of the last two runs, if they say one that can be."""
    (share, bits), (last_share, last_bits) = told[0], told[-1]
    if last_share == share:
        return known
    return min(most, max((last_bits - bits) / (last_share - share), most / 16))
