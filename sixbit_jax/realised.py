"""What a run came to: the widths its activations really had, and how much of it was skipped."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sixbit_jax.routes import Route
from sixbit_jax.sampler import Trace


@dataclasses.dataclass(frozen=True)
class Realised:
    """`mean_bits`: of the activations in blocks that ran, every linear group counting the same.

    `mean_bits_with_skipped` counts zero bits for what did not run.
    """

    mean_bits: float
    mean_bits_with_skipped: float
    skip_rate: float


def realised(trace: Trace, routes: Sequence[Route]) -> Realised:
    """Of one run, over its steps, branches, layers and groups."""
    bits = np.array([route.bits for route in routes], np.float64)[np.asarray(trace.route)].mean(-1)
    ran = ~np.asarray(trace.skipped)
    total = float((bits * ran).sum())
    return Realised(total / max(int(ran.sum()), 1), total / ran.size, float(1 - ran.mean()))
