"""Which steps MagCache and TeaCache skip, worked out before the run.

Both estimate what a skip costs, add it up over skips in a row, and compute again when the sum crosses a threshold. They
differ in the estimate: how much the length of the stack's residual changes (MagCache, from one calibration run), or a
polynomial of how much the time embedding changes (TeaCache).
"""

import numpy as np
from jaxtyping import Float


def magcache_steps(
    ratios: Float[np.ndarray, " i"], threshold: float, *, max_skips: int = 2, retention: float = 0.2
) -> tuple[int, ...]:
    """`ratios[i]`: mean length of the residual at step i over that at i - 1; the first is not read.

    >>> magcache_steps(np.array([1.0, 0.9, 0.99, 0.99, 0.99, 0.8]), 0.05)
    (2, 3)
    """
    skipped: list[int] = []
    product, error, in_a_row = 1.0, 0.0, 0
    for step in range(max(1, int(np.ceil(retention * len(ratios)))), len(ratios)):
        product *= ratios[step]
        error += abs(1 - product)
        if error < threshold and in_a_row < max_skips:
            skipped.append(step)
            in_a_row += 1
        else:
            product, error, in_a_row = 1.0, 0.0, 0
    return tuple(skipped)


def teacache_steps(
    changes: Float[np.ndarray, " i"],
    coefficients: Float[np.ndarray, " c"],
    threshold: float,
    *,
    first: int = 1,
    last: int = 1,
) -> tuple[int, ...]:
    """`changes[i]`: relative L1 change of the time embedding since step i - 1; the polynomial's highest degree leads.

    The first and last steps are computed.

    >>> teacache_steps(np.array([0.0, 0.1, 0.1, 0.1, 0.1]), np.array([1.0, 0.0]), 0.25)
    (1, 2)
    """
    skipped: list[int] = []
    sum_ = 0.0
    for step in range(first, len(changes) - last):
        sum_ += float(np.polyval(coefficients, changes[step]))
        if sum_ < threshold:
            skipped.append(step)
        else:
            sum_ = 0.0
    return tuple(skipped)
