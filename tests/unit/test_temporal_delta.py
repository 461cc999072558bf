"""The delta cache: neutral settings change nothing, the scan decides as a plain loop does, memory is what it says."""

import dataclasses
import functools
import re
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax import schedulers
from sixbit_jax.errors import UserError
from sixbit_jax.policies import (
    FixedPrecision,
    NoCache,
    PolicySpec,
    ScheduledReuse,
    StepInfo,
    TemporalDeltaCache,
    delta_store,
)
from sixbit_jax.policies.delta_reuse import within_budget
from sixbit_jax.policies.temporal_delta import TOGETHER
from sixbit_jax.sampler import COMPILER_OPTIONS, Sampler, sample

LAYERS, DIM, STEPS, BRANCHES = 4, 32, 16, 2
SHAPE = (1, 1, 2, 4, DIM)
TOKENS = 8
SPEC = PolicySpec(LAYERS, ("only",), BRANCHES, STEPS, TOKENS, DIM, "float32")


def block(weight: jax.Array, x: jax.Array, time: jax.Array) -> jax.Array:
    return x + 0.3 * jnp.tanh(jnp.einsum("bsd,nd->bsn", x, weight) + time)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A stack of small residual blocks, as the sampler wants a model."""

    def __call__(self, params, latents, context, info, *, routes, route_index, run_stack, memory, decisions):
        def blocks(run_block: Any, x: jax.Array, memory: Any) -> Any:
            def layer(carry: Any, xs: Any) -> Any:
                weight, decision = xs
                compute = lambda x: (block(weight, x, context + info.timestep / 1e3), {})
                x, memory, observed = run_block(compute, *carry, decision)
                return (x, memory), observed

            carry, observed = jax.lax.scan(layer, (x, memory), (params, decisions))
            return *carry, observed

        x, memory, observed = run_stack(blocks, latents.reshape(1, TOKENS, DIM), memory, decisions)
        return (x / 4).reshape(latents.shape), memory, observed


@functools.cache
def inputs() -> tuple[jax.Array, jax.Array, jax.Array]:
    weights = jax.random.normal(jax.random.key(0), (LAYERS, DIM, DIM)) / DIM**0.5
    return weights, jnp.array([0.1, -0.1]), jax.random.normal(jax.random.key(1), SHAPE)


def infos() -> StepInfo:
    plan = schedulers.get("euler").plan(STEPS, shift=3.0, schedule="diffusers")
    each = lambda value, dtype: jnp.full((STEPS,), value, dtype)
    return StepInfo(
        step=jnp.arange(STEPS),
        last=each(STEPS - 1, jnp.int32),
        timestep=jnp.asarray(plan.timestep),
        guidance=each(2.0, jnp.float32),
        expert=each(0, jnp.int32),
        solver=jax.tree.map(jnp.asarray, plan),
    )


def run(cache: Any) -> tuple[jax.Array, Any]:
    weights, contexts, noise = inputs()
    parts = Sampler(Blocks(), schedulers.get("euler"), FixedPrecision(), cache, SPEC)
    return jax.jit(sample, static_argnums=0, compiler_options=COMPILER_OPTIONS)(
        parts, weights, contexts, noise, infos()
    )


def python_loop(policy: TemporalDeltaCache) -> tuple[np.ndarray, np.ndarray]:
    """Latents and skips of the same process, with a dictionary for a cache and `if` for a decision."""
    weights, contexts, latents = inputs()
    scheduler, steps = schedulers.get("euler"), infos()
    state, skipped = scheduler.init(latents), np.zeros((STEPS, BRANCHES, LAYERS), bool)
    blocks = [(e, l) for e in range(BRANCHES) for l in range(LAYERS)]
    known = {place: {"change": 0.0, "error": 0.0, "skips": 0, "deltas": []} for place in blocks}
    for i in range(STEPS):
        skip = decisions(policy, known, i)
        info, velocities = jax.tree.map(lambda leaf, i=i: leaf[i], steps), []
        for e in range(BRANCHES):
            x = latents.reshape(1, TOKENS, DIM)
            for l in range(LAYERS):
                seen = known[e, l]
                if skip[e, l]:
                    seen["error"], seen["skips"] = seen["error"] + seen["change"], seen["skips"] + 1
                    x, skipped[i, e, l] = x + seen["deltas"][-1], True
                    continue
                delta = block(weights[l], x, contexts[e] + info.timestep / 1e3) - x
                if seen["deltas"]:
                    old = seen["deltas"][-1]
                    seen["change"] = float(jnp.abs(delta - old).sum() / jnp.abs(old).sum())
                seen["error"], seen["skips"] = 0.0, 0
                seen["deltas"].append(delta)
                x = x + delta
            velocities.append((x / 4).reshape(SHAPE))
        velocity = velocities[1] + info.guidance * (velocities[0] - velocities[1])
        latents, state = scheduler.step(state, latents, velocity, info.solver)
    return np.asarray(latents), skipped


def decisions(policy: TemporalDeltaCache, known: dict[tuple[int, int], Any], step: int) -> dict[tuple[int, int], bool]:
    """Which blocks the loop skips at a step."""
    in_time = policy.warmup <= step <= STEPS - 1 - policy.cooldown
    wants = {}
    for place, seen in known.items():
        stable = len(seen["deltas"]) >= 2 and seen["error"] + seen["change"] < policy.tau
        wants[place] = in_time and stable and seen["skips"] < policy.max_skips
    if policy.together == "block":
        return wants
    votes = sum(all(wants[e, l] for e in range(BRANCHES)) for l in range(LAYERS))
    return dict.fromkeys(wants, 2 * votes > LAYERS)


def test_tau_zero_is_the_plain_sampler():
    plain, _ = run(NoCache())
    cached, trace = run(TemporalDeltaCache(tau=0.0, cache_format="f32"))
    assert not trace.skipped.any()
    np.testing.assert_array_equal(plain, cached)


@pytest.mark.parametrize("together", TOGETHER)
@pytest.mark.parametrize("tau", [0.1, 0.25])
def test_the_scan_decides_as_a_loop_does(tau: float, together: str):
    """Sums in another order differ by 1e-6; a decision that differed would show as one percent."""
    policy = TemporalDeltaCache(tau=tau, cache_format="f32", together=together)
    latents, trace = run(policy)
    expected, skipped = python_loop(policy)
    assert 0.1 < skipped.mean() < 0.7
    whole = skipped.reshape(STEPS, -1)
    assert (whole.all(1) == whole.any(1)).all() == (together == "step")
    np.testing.assert_array_equal(trace.skipped, skipped)
    np.testing.assert_allclose(latents, expected, atol=1e-5, rtol=0)


def test_together_skips_only_layers_with_a_cache():
    """Of three layers two have to agree, in both branches."""
    policy = TemporalDeltaCache(tau=0.1, together="step", layers=(0, 1, 3))
    both = lambda *layers: np.isin(np.arange(LAYERS), layers)[None].repeat(BRANCHES, 0)
    np.testing.assert_array_equal(policy.agree(SPEC, jnp.asarray(both(0, 3))), both(0, 1, 3))
    np.testing.assert_array_equal(policy.agree(SPEC, jnp.asarray(both(1))), both())
    one_branch = jnp.asarray(both(0, 1, 3)).at[1, 0].set(False).at[1, 1].set(False)
    np.testing.assert_array_equal(policy.agree(SPEC, one_branch), both())


def test_limits_hold():
    policy = TemporalDeltaCache(tau=1e9, max_skips=3, warmup=4, cooldown=2, layers=(1, 3))
    skipped = np.asarray(run(policy)[1].skipped)
    assert not skipped[:4].any()
    assert not skipped[-2:].any()
    assert not skipped[:, :, [0, 2]].any()
    # Of four steps three are skipped, and the one between is computed.
    np.testing.assert_array_equal(skipped[4:14, 0, 1], [True, True, True, False] * 2 + [True, True])


@pytest.mark.parametrize(("name", "bound"), [("f32", 0.0), ("bf16", 2**-8), ("int8", 0.5 / 127), ("nvfp4", 0.25)])
def test_stores_return_what_was_written(name: str, bound: float):
    """Bounds are half a step: of a number in bf16; of the largest of a token in INT8; of E2M1, 1 in 4 to 6."""
    deltas = jax.random.normal(jax.random.key(3), (3, 1, TOKENS, DIM))
    store = delta_store.allocate(name, 3, (1, TOKENS, DIM))
    for slot in range(3):
        store = delta_store.write(name, store, jnp.int32(slot), deltas[slot])
    for slot in range(3):
        error = jnp.abs(delta_store.read(name, store, jnp.int32(slot)) - deltas[slot])
        assert (error <= bound * jnp.abs(deltas[slot]).max(-1, keepdims=True) + 1e-7).all()
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(store)) == 3 * delta_store.slot_bytes(name, (1, TOKENS, DIM))


@pytest.mark.parametrize("layers", [1, 20, 45])
@pytest.mark.parametrize("name", delta_store.formats())
def test_all_deltas_are_added_once_however_many_a_pass_takes(name: str, layers: int):
    deltas = jax.random.normal(jax.random.key(4), (layers, 1, TOKENS, DIM))
    store = delta_store.allocate(name, layers, (1, TOKENS, DIM))
    for slot in range(layers):
        store = delta_store.write(name, store, jnp.int32(slot), deltas[slot])
    x = expected = jax.random.normal(jax.random.key(5), (1, TOKENS, DIM))
    slots = jnp.arange(layers)[::-1]
    for slot in slots:
        expected = expected + delta_store.read(name, store, slot)
    added = jax.jit(functools.partial(delta_store.add_all, name))(x, store, slots)
    np.testing.assert_allclose(added, expected, rtol=0, atol=1e-5)


def test_compressed_caches_stay_close_and_are_smaller():
    exact, _ = run(TemporalDeltaCache(tau=0.2, cache_format="f32"))
    errors, sizes = [], []
    for name in ("bf16", "int8", "nvfp4"):
        policy = TemporalDeltaCache(tau=0.2, cache_format=name)
        errors.append(float(jnp.abs(run(policy)[0] - exact).max()))
        sizes.append(policy.nbytes(SPEC))
    assert sizes == sorted(sizes, reverse=True)
    assert errors[0] < errors[1] < errors[2] < 0.2


def test_a_budget_keeps_the_layers_that_pay():
    policy = TemporalDeltaCache(tau=0.2)
    each = policy.nbytes(SPEC) // LAYERS
    small = within_budget(policy, SPEC, 2 * each + 1, order=(3, 0, 1, 2))
    assert small.layers == (0, 3)
    assert small.nbytes(SPEC) == 2 * each
    assert within_budget(policy, SPEC, LAYERS * each, order=(3, 0, 1, 2)) == policy
    budget = dataclasses.replace(policy, budget_gb=(2 * each + 1) / 1e9, order=(3, 0, 1, 2))
    fitted, note = budget.for_run(SPEC)
    assert (fitted, note) == (small, f"delta cache of 2 of 4 layers, {2 * each / 1e6:.1f} MB")
    with pytest.raises(UserError, match="hold no layer"):
        within_budget(policy, SPEC, each - 1, order=(3, 0, 1, 2))


def test_too_few_steps_are_said_and_run_without():
    policy = TemporalDeltaCache(tau=0.2)
    few, note = policy.for_run(dataclasses.replace(SPEC, steps=3))
    assert few == NoCache(measure=True)
    assert "3 steps leave the delta cache nothing to skip; it starts at 4" in str(note)
    assert policy.for_run(dataclasses.replace(SPEC, steps=4)) == (policy, None)
    always = run(TemporalDeltaCache(tau=1e9))[1]
    assert np.asarray(always.skipped).argmax(0).max() == 2, "the third step is the first that can be skipped"


def test_the_trace_tells_what_reuse_is_assumed_to_have_cost():
    _, trace = run(TemporalDeltaCache(tau=0.2, cache_format="f32"))
    skipped, change, error = (np.asarray(each) for each in (trace.skipped, trace.change, trace.error))
    assert trace.gamma is not None
    last, expected = np.zeros_like(error[0]), np.zeros_like(error[0])
    for step in range(STEPS):
        expected = np.where(skipped[step], expected + last, 0.0)
        last = np.where(skipped[step], last, change[step])
        np.testing.assert_allclose(error[step], expected, rtol=1e-6)
    assert 0 < error.max() < 0.2


def test_planned_steps_are_skipped_whole():
    _, trace = run(ScheduledReuse(steps=(3, 4, 9), cache_format="f32"))
    expected = np.isin(np.arange(STEPS), (3, 4, 9))[:, None, None]
    np.testing.assert_array_equal(trace.skipped, np.broadcast_to(expected, trace.skipped.shape))
    with pytest.raises(UserError, match="first that can be skipped is 1"):
        ScheduledReuse(steps=(0,))


def test_without_tau_it_does_not_run():
    with pytest.raises(UserError, match="needs tau"):
        TemporalDeltaCache().for_run(SPEC)
    with pytest.raises(UserError, match="needs tau"):
        run(TemporalDeltaCache())


@pytest.mark.parametrize("cache_format", delta_store.formats())
def test_a_step_skipped_whole_is_its_blocks_skipped_one_by_one(cache_format: str):
    policy = ScheduledReuse(steps=(3, 4), cache_format=cache_format)
    found, _ = run(policy)
    with mock.patch.object(ScheduledReuse, "whole_steps", False):
        block_by_block, _ = run(policy)
    np.testing.assert_allclose(found, block_by_block, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("together", ["block", "step"])
@pytest.mark.parametrize("layers", [None, (0, 3)])
def test_the_cache_is_updated_in_place(layers: tuple[int, ...] | None, together: str):
    """One copy would be the price of the whole cache, at every block of every step."""
    policy = TemporalDeltaCache(tau=0.2, cache_format="f32", layers=layers, together=together)
    weights, contexts, noise = inputs()
    parts = Sampler(Blocks(), schedulers.get("euler"), FixedPrecision(), policy, SPEC)
    program = jax.jit(sample, static_argnums=0, compiler_options=COMPILER_OPTIONS)
    text = program.lower(parts, weights, contexts, noise, infos()).compile().as_text()
    cache = f"f32[{BRANCHES * (LAYERS if layers is None else len(layers))},1,{TOKENS},{DIM}]"
    body = text[: text.index("ENTRY")]
    assert cache in body
    assert not re.findall(rf"= {re.escape(cache)}\S* copy\(", body)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"cache_format": "int9"}, "int8"), ({"tau": -1.0}, "tau"), ({"max_skips": -1}, "max_skips")],
)
def test_wrong_settings_are_named(wrong: dict[str, Any], says: str):
    with pytest.raises(UserError, match=says):
        TemporalDeltaCache(**{"tau": 0.1} | wrong)
