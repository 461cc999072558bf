"""The search for tau, on made-up processes whose changes grow with what was skipped."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.errors import UserError
from sixbit_jax.policies import PolicySpec, StepInfo, TemporalDeltaCache
from sixbit_jax.policies.temporal_delta import TOGETHER
from sixbit_jax.tau_search import TauSearch, order, replay

SPEC = PolicySpec(8, ("only",), 2, 40, 8, 16, "float32")
POLICY = TemporalDeltaCache(tau=0.0)
CHANGES = np.random.default_rng(0).uniform(0.02, 0.2, (40, 2, 8)) * np.linspace(2, 0.5, 8)
CHANGES[0] = 1e30  # a first delta, divided by the nothing before it


@pytest.mark.parametrize("together", TOGETHER)
@pytest.mark.parametrize("tau", [0.0, 0.25, 0.4, 1e9])
def test_a_replay_is_the_policys_own_rule(tau: float, together: str):
    policy = dataclasses.replace(POLICY, tau=tau, layers=(0, 1, 2, 5), together=together)

    def step(state: Any, xs: Any) -> Any:
        index, change = xs
        info = StepInfo(index, jnp.int32(39), None, None, None, None)
        skip = policy.agree(SPEC, jax.vmap(lambda s: policy.decide(SPEC, s, info))(state))
        update = lambda s, k, c: policy.update(SPEC, s, info, k, {"change": c})
        return jax.vmap(update)(state, skip, change), skip

    init = jax.vmap(lambda _: policy.init(SPEC))(jnp.arange(2))
    decided = jax.lax.scan(step, init, (jnp.arange(40), jnp.asarray(CHANGES, jnp.float32)))[1]
    np.testing.assert_array_equal(replay(policy, SPEC, CHANGES), decided)
    assert decided.any() == (tau > 0)


@pytest.mark.parametrize("target", [0.15, 0.3, 0.5])
def test_the_rate_is_met_though_real_changes_are_larger(target: float):
    """The process: changes are half as large again as the first run showed, once anything is skipped."""
    search = TauSearch(POLICY, SPEC, CHANGES, target)
    for _ in range(4):
        skipped = replay(dataclasses.replace(POLICY, tau=search.tau), SPEC, 1.5 * CHANGES)
        if abs(skipped.mean() - target) < 0.03:
            break
        search.tell(float(skipped.mean()))
    assert abs(skipped.mean() - target) < 0.03
    counts = skipped.sum((0, 1))
    assert list(counts[list(order(skipped))]) == sorted(counts, reverse=True)


def test_rates_that_cannot_be_are_refused():
    with pytest.raises(UserError, match=r"--target-skip-rate 0.9: has to be above 0 and at most 0.6"):
        TauSearch(POLICY, SPEC, CHANGES, 0.9)
