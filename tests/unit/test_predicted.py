"""Predicted precision: who gets which route, from what was seen at the step before."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax import recipes
from sixbit_jax.errors import UserError
from sixbit_jax.policies import NoCache, PolicySpec, PredictedPrecision, RandomPrecision, StepInfo, TemporalDeltaCache
from sixbit_jax.quantizers import MinMax
from sixbit_jax.recipes import Recipe, WeightRule

GROUPS = ("one", "two", "three")
SPEC = PolicySpec(4, GROUPS, 2, 10, 8, 16, "float32")
LOW, HIGH, FULL = 0, 1, 2
# Group "one" never comes near the threshold, "two" does with the relative change, "three" always is above it.
SLOPE, OFFSET = ((0.0, 1.0, 0.0),) * 4, ((0.0, 0.0, 9.0),) * 4
GAMMA = jnp.array([0.1, 0.2, 0.3, 0.4])
RATIO = {"one": jnp.array([30.0, 1.0, 30.0, 1.0]), "two": jnp.full((4,), 20.0), "three": jnp.full((4,), 40.0)}


def at(step: int) -> StepInfo:
    return StepInfo(jnp.int32(step), jnp.int32(9), None, None, None, None)


def policy(**changes: Any) -> PredictedPrecision:
    return PredictedPrecision(**{"slope": SLOPE, "offset": OFFSET, "error_threshold": 0.25} | changes)


def after_one_step(chosen: PredictedPrecision, skipped: list[bool] | None = None) -> Any:
    """The state behind a computed step and, if given, one that skipped some layers."""
    none, observed = jnp.zeros(4, bool), {"gamma": GAMMA, "inputs": RATIO}
    state = chosen.update(SPEC, chosen.init(SPEC), at(0), none, observed)
    if skipped is None:
        return state
    zeros = jax.tree.map(jnp.zeros_like, observed)
    return chosen.update(SPEC, state, at(1), jnp.array(skipped), zeros)


def decide(chosen: PredictedPrecision, state: Any, step: int) -> np.ndarray:
    return np.asarray(chosen.decide(SPEC, state, at(step), jnp.zeros(4, bool)))


def test_the_first_step_is_high():
    chosen = policy()
    assert (decide(chosen, chosen.init(SPEC), 0) == HIGH).all()


def test_the_predicted_error_picks_the_route():
    expected = np.stack([np.full(4, LOW), np.where(np.asarray(GAMMA) > 0.25, HIGH, LOW), np.full(4, HIGH)], axis=-1)
    chosen = policy()
    np.testing.assert_array_equal(decide(chosen, after_one_step(chosen), 1), expected)


def test_after_a_skip_the_route_is_high_and_loud_groups_are_full():
    """What was seen before the skip still counts as what is known of a layer."""
    chosen = policy()
    found = decide(chosen, after_one_step(chosen, [True, True, False, False]), 2)
    np.testing.assert_array_equal(found[0], [FULL, HIGH, FULL])
    np.testing.assert_array_equal(found[1], [HIGH, HIGH, FULL])
    assert found[2:].max() < FULL


def test_the_other_reading_purifies_every_computation():
    chosen = policy(purify="always")
    found = decide(chosen, after_one_step(chosen), 1)
    np.testing.assert_array_equal(found == FULL, np.stack([RATIO[group] > 25 for group in GROUPS], axis=-1))


def test_without_purification_nothing_is_full_and_no_ratio_is_needed():
    chosen = policy(purify="never")
    assert len(chosen.routes) == 2
    assert chosen.needs == ("gamma",)
    assert decide(chosen, after_one_step(chosen, [True] * 4), 2).max() == HIGH


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"purify": "sometimes"}, "purify"),
        ({"offset": ((0.0,),) * 4}, "every layer"),
        ({"slope": SLOPE[:2]}, "every"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any], says: str):
    with pytest.raises(UserError, match=says):
        policy(**wrong)


def test_without_a_calibration_the_threshold_is_on_the_relative_change():
    chosen = policy(slope=None, offset=None)
    expected = np.where(np.asarray(GAMMA) > 0.25, HIGH, LOW)[:, None]
    np.testing.assert_array_equal(decide(chosen, after_one_step(chosen), 1), np.broadcast_to(expected, (4, 3)))


def test_without_a_threshold_it_does_not_run():
    with pytest.raises(UserError, match="needs error_threshold"):
        policy(error_threshold=None).init(SPEC)


def test_lots_have_the_share_asked_for():
    """Of 12 groups a step a third; all at the first step; other steps and seeds draw others."""
    drawn = [
        np.stack(
            [
                np.asarray(RandomPrecision(1 / 3, seed).decide(SPEC, (), at(step), jnp.zeros(4, bool)))
                for step in range(10)
            ]
        )
        for seed in (0, 1)
    ]
    for routes in drawn:
        assert (routes[0] == HIGH).all()
        np.testing.assert_array_equal((routes[1:] == HIGH).sum((1, 2)), 4)
        assert (routes[1:].mean(0) < 1).all()
    assert (drawn[0] != drawn[1]).any()


def test_another_model_is_refused():
    with pytest.raises(UserError, match="calibrated for 4 layers and 3 linear groups, this model has 5 and 3"):
        policy().init(dataclasses.replace(SPEC, layers=5))


def test_a_recipe_needs_a_cache_that_measures():
    make = lambda cache: Recipe("mine", weights=(WeightRule("*", MinMax("nvfp4")),), precision=policy(), cache=cache)
    with pytest.raises(UserError, match="which NoCache does not measure"):
        make(NoCache())
    for cache in (NoCache(measure=True), TemporalDeltaCache(tau=0.1)):
        recipe = make(cache)
        assert recipes.from_json(recipes.to_json(recipe)) == recipe
