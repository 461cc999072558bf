"""The search for a width, on made-up runs."""

import numpy as np
import pytest

from sixbit_jax.bits_search import CLOSE, ROUNDS, find_threshold

ERRORS = np.random.default_rng(0).lognormal(-2, 1, (4, 19, 2, 10, 6))
ALONE = float(np.median(ERRORS))  # half of all groups in eight bits


def width(threshold: float, first: float = 0.3, full: float = 0.0) -> float:
    """Of a run where a share `first` of what runs has eight bits whatever the threshold, and `full` has sixteen."""
    predicted = 4 + 4 * float(np.mean(threshold < ERRORS))
    return first * 8 + full * 16 + (1 - first - full) * predicted


@pytest.mark.parametrize("full", [0.0, 0.05])
@pytest.mark.parametrize("target", [5.8, 6.0, 7.0])
def test_the_width_is_hit(target, full):
    found = find_threshold(ERRORS, ALONE, target, 4.0, lambda threshold: width(threshold, full=full))
    assert abs(found.bits - target) <= CLOSE
    assert found.bits == width(found.error_threshold, full=full)


def test_what_cannot_be_hit_ends_at_the_narrowest():
    runs = []
    found = find_threshold(ERRORS, ALONE, 4.5, 4.0, lambda threshold: runs.append(threshold) or width(threshold))
    assert found.bits == pytest.approx(0.3 * 8 + 0.7 * 4, abs=1e-3)
    assert len(runs) < ROUNDS, "once nothing is above the threshold there is nothing to try"


def test_the_first_guess_is_kept_where_it_is_right():
    runs = []
    found = find_threshold(
        ERRORS, ALONE, width(ALONE), 4.0, lambda threshold: runs.append(threshold) or width(threshold)
    )
    assert runs == [ALONE]
    assert found.error_threshold == ALONE
