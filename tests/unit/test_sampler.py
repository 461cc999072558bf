"""The loop: its scan against a plain Python loop, its branches, and a cache policy written to the contract alone."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sixbit_jax import schedulers
from sixbit_jax.models import wan
from sixbit_jax.models.wan_config import GROUPS, WanConfig
from sixbit_jax.models.wan_modules import init_params
from sixbit_jax.policies import FixedPrecision, NoCache, PolicySpec, PredictedPrecision, StepInfo, TemporalDeltaCache
from sixbit_jax.policies.cache import AbstractCachePolicy
from sixbit_jax.policies.measures import note_outlier_ratio
from sixbit_jax.policies.precision import AbstractPrecisionPolicy
from sixbit_jax.routes import Route
from sixbit_jax.sampler import Sampler, guide, sample

CONFIG = WanConfig(num_layers=3, num_heads=1, ffn_dim=128, text_dim=16, freq_dim=32)
SHAPE = (1, 2, 4, 4, 16)
STEPS = 6


@dataclasses.dataclass(frozen=True)
class Denoise:
    """The DiT of this test, as the sampler wants a model."""

    def __call__(self, params, latents, context, info, **plan):
        timestep = jnp.broadcast_to(info.timestep, latents.shape[:1])
        return wan.forward(params, CONFIG, latents, timestep, context, observe=note_outlier_ratio, **plan)


@dataclasses.dataclass(frozen=True)
class ReuseEveryOther(AbstractCachePolicy):
    """Skips every layer at odd steps and adds the delta of the step before: the shortest honest cache policy."""

    dim: int

    def init(self, spec: PolicySpec) -> Any:
        return {"reused": jnp.zeros((spec.layers,), jnp.int32)}

    def allocate(self, spec: PolicySpec) -> Any:
        return jnp.zeros((spec.branches * spec.layers, 1, spec.tokens, self.dim), jnp.float32)

    def decide(self, spec: PolicySpec, state: Any, info: StepInfo) -> Any:
        return jnp.full((spec.layers,), info.step % 2 == 1)

    def run(self, compute, x, memory, slot, skip):
        def computed(x, memory):
            y, _ = compute(x)
            return y, lax.dynamic_update_index_in_dim(memory, y - x, slot, 0)

        def reused(x, memory):
            return x + lax.dynamic_index_in_dim(memory, slot, 0, keepdims=False), memory

        y, memory = lax.cond(skip, reused, computed, x, memory)
        return y, memory, {"size": jnp.abs(y).mean()}

    def update(self, spec, state, info, skipped, observed):
        return {"reused": state["reused"] + skipped.astype(jnp.int32)}


@functools.cache
def model() -> tuple[Any, Any]:
    params = init_params(CONFIG, jax.random.key(0))
    text = jax.random.normal(jax.random.key(1), (2, 8, CONFIG.text_dim))
    context = wan.embed_context(params, CONFIG, text)
    return params, jax.tree.map(lambda x: jnp.moveaxis(x[:, :, None], 1, 0), context)


def infos(guidance: float = 4.0) -> StepInfo:
    plan = schedulers.get("unipc").plan(STEPS, shift=3.0, schedule="diffusers")
    each = lambda value, dtype: jnp.full((STEPS,), value, dtype)
    return StepInfo(
        step=jnp.arange(STEPS),
        last=each(STEPS - 1, jnp.int32),
        timestep=jnp.asarray(plan.timestep),
        guidance=each(guidance, jnp.float32),
        expert=each(0, jnp.int32),
        solver=jax.tree.map(jnp.asarray, plan),
    )


def build(cache=NoCache(), precision=FixedPrecision(), branches: int = 2) -> Sampler:
    tokens = int(np.prod(CONFIG.grid(SHAPE[1:4])))
    spec = PolicySpec(CONFIG.num_layers, GROUPS, branches, STEPS, tokens, CONFIG.dim, "float32")
    return Sampler(Denoise(), schedulers.get("unipc"), precision, cache, spec)


def python_loop(parts: Sampler, infos: StepInfo, noise: jax.Array, skip_odd: bool) -> jax.Array:
    """The same process with nothing but loops: no scan, no cond, no policy."""
    params, contexts = model()
    latents, state, deltas = noise, parts.scheduler.init(noise), {}
    for i in range(STEPS):
        info = jax.tree.map(lambda x, i=i: x[i], infos)
        velocities = []
        for e in range(parts.spec.branches):
            context = jax.tree.map(lambda x, e=e: x[e], contexts)
            velocities.append(forward_by_layer(params, latents, info, context, deltas, e, skip_odd and i % 2 == 1))
        velocity = guide(jnp.stack(velocities), info.guidance)
        latents, state = parts.scheduler.step(state, latents, velocity, info.solver)
    return latents


def forward_by_layer(params, latents, info, context, deltas, branch: int, skip: bool) -> jax.Array:
    """`wan.forward` on one-layer models that hand their activations on, with a dictionary for a cache."""
    one_layer = dataclasses.replace(CONFIG, num_layers=1)
    velocity, activations = None, None
    for layer in range(CONFIG.num_layers):

        def run_block(compute, x, memory, decision, layer=layer):
            nonlocal activations
            x = x if activations is None else activations
            if not skip:
                deltas[branch, layer] = compute(x)[0] - x
            activations = x + deltas[branch, layer]
            return activations, memory, ()

        take = lambda tree, layer=layer: jax.tree.map(lambda x: x[layer : layer + 1], tree)
        sub = params | {"blocks": take(params["blocks"])}
        timestep = jnp.broadcast_to(info.timestep, (1,))
        with jax.disable_jit():  # the block runner has side effects
            velocity = wan.forward(sub, one_layer, latents, timestep, take(context), run_block=run_block)[0]
    return velocity


@pytest.mark.parametrize("skip_odd", [False, True])
def test_scan_equals_a_python_loop(skip_odd):
    """f32 rounding through 6 steps of a 3-layer model is around 1e-6; a wrong decision or slot is a gross error."""
    parts = build(ReuseEveryOther(CONFIG.dim) if skip_odd else NoCache())
    noise = jax.random.normal(jax.random.key(2), SHAPE)
    params, contexts = model()
    latents, trace = jax.jit(sample, static_argnums=0)(parts, params, contexts, noise, infos())
    np.testing.assert_allclose(latents, python_loop(parts, infos(), noise, skip_odd), atol=2e-5, rtol=0)
    assert trace.skipped.shape == (STEPS, 2, CONFIG.num_layers)
    expected = np.arange(STEPS)[:, None, None] % 2 == (1 if skip_odd else 2)
    np.testing.assert_array_equal(trace.skipped, np.broadcast_to(expected, trace.skipped.shape))


def test_observations_are_stacked_per_step_branch_and_layer():
    params, contexts = model()
    noise = jax.random.normal(jax.random.key(2), SHAPE)
    _, trace = jax.jit(sample, static_argnums=0)(build(NoCache(measure=True)), params, contexts, noise, infos())
    assert trace.observed["gamma"].shape == (STEPS, 2, CONFIG.num_layers)
    assert (trace.observed["gamma"] > 0).all()
    assert trace.route.shape == (STEPS, 2, CONFIG.num_layers, len(GROUPS))


def test_guidance_of_one_branch_is_the_conditional_model():
    params, contexts = model()
    noise = jax.random.normal(jax.random.key(2), SHAPE)
    first = jax.tree.map(lambda x: x[:1], contexts)
    one, _ = jax.jit(sample, static_argnums=0)(build(branches=1), params, first, noise, infos())
    two, _ = jax.jit(sample, static_argnums=0)(build(branches=2), params, contexts, noise, infos(guidance=1.0))
    np.testing.assert_allclose(one, two, atol=2e-5, rtol=0)


@dataclasses.dataclass(frozen=True)
class Alternate(AbstractPrecisionPolicy):
    """Route 1 in the upper layers, route 0 below: equal mathematics, so only the plumbing can differ."""

    @property
    def routes(self):
        return (Route(), Route(implementation="reference"))

    def init(self, spec):
        return ()

    def decide(self, spec, state, info, skip):
        layer = jnp.arange(spec.layers)[:, None] >= 1
        return jnp.broadcast_to(layer, (spec.layers, len(spec.groups))).astype(jnp.int32)

    def update(self, spec, state, info, skipped, observed):
        return state


def test_routes_reach_the_linears():
    params, contexts = model()
    noise = jax.random.normal(jax.random.key(2), SHAPE)
    run = jax.jit(sample, static_argnums=0)
    plain, _ = run(build(), params, contexts, noise, infos())
    routed, trace = run(build(precision=Alternate()), params, contexts, noise, infos())
    np.testing.assert_allclose(plain, routed, atol=2e-5, rtol=0)
    assert set(np.unique(trace.route[:, :, 0])) == {0}
    assert set(np.unique(trace.route[:, :, 1:])) == {1}


def test_progress_is_reported_once_a_step():
    params, contexts = model()
    seen = []
    report = lambda step, skipped, bits: seen.append((int(step), float(skipped), float(bits)))
    parts = build(ReuseEveryOther(CONFIG.dim))
    jax.block_until_ready(
        jax.jit(lambda noise: sample(parts, params, contexts, noise, infos(), report))(jnp.ones(SHAPE))
    )
    jax.effects_barrier()
    assert sorted(seen) == [(i, float(i % 2), 16.0 * (i % 2 == 0)) for i in range(STEPS)]


def test_one_compiled_program_serves_other_shifts_and_guidance():
    params, contexts = model()
    run = jax.jit(sample, static_argnums=0)
    noise = jnp.ones(SHAPE)
    run(build(), params, contexts, noise, infos(guidance=1.5))
    programs = run._cache_size()
    run(build(), params, contexts, noise, infos(guidance=6.0))
    assert run._cache_size() == programs


def test_predicted_precision_and_delta_cache_decide_by_what_the_trace_shows():
    """Routes worked out again from the observations before them: nothing else may enter a decision."""
    tables = ((1.0,) * len(GROUPS),) * CONFIG.num_layers, ((0.0,) * len(GROUPS),) * CONFIG.num_layers
    precision = PredictedPrecision(*tables, error_threshold=0.8, outlier_ratio=4.0)
    cache = TemporalDeltaCache(tau=1e9, max_skips=1, warmup=2, cooldown=0, cache_format="f32")
    params, contexts = model()
    noise = jax.random.normal(jax.random.key(2), SHAPE)
    _, trace = jax.jit(sample, static_argnums=0)(build(cache, precision), params, contexts, noise, infos())
    trace = jax.tree.map(np.asarray, trace)
    assert trace.skipped[2].all()
    assert not trace.skipped[[0, 1, 3, 5]].any()
    assert (trace.route[0] == 1).all()
    for step, reused in ((1, False), (3, True)):
        last = step - 2 if reused else step - 1
        ratio = np.stack([trace.observed["inputs"][group][last] for group in GROUPS], axis=-1)
        low = (trace.observed["gamma"][last] <= 0.8)[..., None] & np.ones(len(GROUPS), bool)
        expected = np.where(ratio > 4.0, 2, 1) if reused else np.where(low, 0, 1)
        np.testing.assert_array_equal(trace.route[step], expected)
    assert len(np.unique(trace.route)) > 1
