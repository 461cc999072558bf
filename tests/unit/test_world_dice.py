"""Random choices: as likely as asked, never impossible, never twice the same number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.tiny.dice import Dice, accumulate


@pytest.fixture
def dice() -> Dice:
    return Dice(jax.random.key(0), 40_000)


def test_picks_follow_their_weights(dice: Dice):
    weights = np.array([[0.0, 0.5, 0.0, 0.3, 0.2, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0, 3.0]])
    rows = jnp.asarray(accumulate(np.repeat(weights, 8000, 0)))
    picked = np.asarray(dice.pick(rows)).reshape(2, 8000)
    for row, expected in zip(picked, weights / weights.sum(1, keepdims=True), strict=True):
        shares = np.bincount(row, minlength=6) / 8000
        np.testing.assert_allclose(shares, expected, atol=0.03)  # five standard deviations of 8000 draws
        assert (shares[expected == 0] == 0).all()


def test_the_ends_of_the_range_pick_the_first_and_last_step(dice: Dice):
    steps = jnp.asarray(accumulate(np.array([0.0, 0.1, 0.2, 0.0])))
    for number, expected in ((0.0, 1), (1 - 2**-23, 2)):  # the least and the greatest number drawn
        dice._numbers, dice._used = jnp.full(1, number, jnp.float32), 0
        assert int(dice.pick(steps)) == expected


def test_counts_and_ranges(dice: Dice):
    below = np.asarray(dice.below(jnp.repeat(jnp.array([1, 2, 8]), 3000))).reshape(3, 3000)
    assert [set(row.tolist()) for row in below] == [{0}, {0, 1}, set(range(8))]
    numbers = np.asarray(dice.uniform(100, 2, low=-3.0, high=jnp.array([-2.0, 5.0])[None]))
    assert numbers.min() >= -3 and numbers[:, 0].max() < -2 < numbers[:, 1].max() < 5
    assert abs(np.mean([bool(dice.chance(0.3)) for _ in range(200)]) - 0.3) < 0.17  # five standard deviations


def test_numbers_are_used_once_and_run_out():
    dice = Dice(jax.random.key(0), 4)
    assert len({*np.asarray(dice.uniform(2)).tolist(), *np.asarray(dice.uniform(2)).tolist()}) == 4
    with pytest.raises(ValueError, match="5 random numbers wanted, 4 drawn"):
        dice.uniform()
