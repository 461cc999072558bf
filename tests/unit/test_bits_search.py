"""The search for a width, on made-up runs."""

import numpy as np
import pytest

from sixbit_jax.bits_search import ThresholdSearch

ERRORS = np.random.default_rng(0).lognormal(-2, 1, (4, 19, 2, 10, 6))
ALONE = float(np.median(ERRORS))  # half of all groups in eight bits


def width(threshold: float, full: float) -> float:
    """Of a run where 30 % of what runs have eight bits whatever the threshold, and a share `full` has sixteen."""
    predicted = 4 + 4 * float(np.mean(threshold < ERRORS))
    return 0.3 * 8 + full * 16 + (0.7 - full) * predicted


def search(target: float, runs: int, full: float) -> float:
    found = ThresholdSearch(ERRORS, ALONE, 4.0)
    for _ in range(runs):
        found.tell(width(found.threshold, full), target)
    return width(found.threshold, full)


@pytest.mark.parametrize("full", [0.0, 0.05])
@pytest.mark.parametrize("target", [6.0, 6.5, 7.5])
def test_the_width_is_hit(target, full):
    assert search(target, 3, full) == pytest.approx(target, abs=0.03)


def test_what_cannot_be_hit_ends_at_the_narrowest():
    assert search(4.5, 5, 0.0) == pytest.approx(0.3 * 8 + 0.7 * 4, abs=1e-3)


def test_a_right_guess_stays():
    found = ThresholdSearch(ERRORS, ALONE, 4.0)
    found.tell(6.5, target=6.5)
    assert found.threshold == pytest.approx(ALONE, rel=1e-3)
