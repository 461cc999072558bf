"""6Bit-Diffusion whole, on a micro model: predicted precision, delta cache and refresh inside one scan."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from micro_pipeline import MICRO, write_micro_pipeline

from sixbit_jax import recipes
from sixbit_jax.errors import UserError
from sixbit_jax.models import wan
from sixbit_jax.models.wan_config import GROUPS
from sixbit_jax.pipeline import WanPipeline, _denoise
from sixbit_jax.policies import FixedPrecision, NoCache, PredictedPrecision, TemporalDeltaCache
from sixbit_jax.realised import realised
from sixbit_jax.routes import Route
from sixbit_jax.sampler import guide

STEPS = 8
LAYERS = MICRO.transformer.num_layers
PROMPT = "a red circle moves left"
# By hand, so that every route and both decisions of the cache occur.
BY_HAND = {"--tau": 0.7, "--error-threshold": 0.31, "--cache-budget-gb": None}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_micro_pipeline(tmp_path_factory.mktemp("model") / "micro")


@pytest.fixture(scope="module")
def pipe(model) -> WanPipeline:
    recipe = recipes.with_flags(dataclasses.replace(recipes.get("6bit"), dtype="f32"), BY_HAND)
    precision = dataclasses.replace(recipe.precision, outlier_ratio=4.0)
    cache = dataclasses.replace(recipe.cache, cache_format="f32")
    return WanPipeline.load(model, dataclasses.replace(recipe, precision=precision, cache=cache))


def with_policies(pipe: WanPipeline, precision: Any, cache: Any) -> WanPipeline:
    return WanPipeline(pipe.components, dataclasses.replace(pipe.recipe, precision=precision, cache=cache))


def arguments(pipe: WanPipeline, settings: Any) -> tuple[Any, ...]:
    return pipe.encode_text(settings), pipe.initial_latents(settings), pipe.infos(settings), None, None


@dataclasses.dataclass(frozen=True)
class Forced(FixedPrecision):
    """The plain sampler with the branches of another policy compiled in: always the last of its routes."""

    choices: tuple[Route, ...] = ()

    @property
    def routes(self) -> tuple[Route, ...]:
        return self.choices

    def decide(self, spec: Any, state: Any, info: Any, skip: Any) -> Any:
        return jnp.full((spec.layers, len(spec.groups)), len(self.choices) - 1, jnp.int32)


@pytest.fixture(scope="module")
def neutral_runs(pipe) -> list[Any]:
    """Latents and traces of one program: the plain sampler, forced decisions, and neutral settings of all policies."""
    precision = PredictedPrecision(error_threshold=-1.0, high=Route(None), purify="never")
    cache = TemporalDeltaCache(tau=0.0, cache_format="f32")
    runs = [
        (FixedPrecision(), NoCache()),
        (FixedPrecision(), cache),
        (Forced(choices=precision.routes), NoCache()),
        (precision, cache),
    ]
    settings = pipe.settings(prompt=PROMPT, num_inference_steps=3)
    parts = [with_policies(pipe, *each).parts(dataclasses.replace(settings)) for each in runs]
    parts = [dataclasses.replace(part, cache=each[1]) for part, each in zip(parts, runs, strict=True)]

    @jax.jit
    def all_of_them(experts: Any, *args: Any) -> Any:
        return [_denoise(part, experts, *args) for part in parts]

    return all_of_them(pipe.components.experts, *arguments(pipe, settings))


def test_neutral_settings_are_the_plain_sampler(neutral_runs):
    """Bit for bit where the branches are the same. A product inside a branch is fused otherwise than one outside: the
    plain sampler itself is then equal to f32 rounding, which a changed decision would exceed a thousandfold."""
    (plain, _), (cached, _), (forced, _), (neutral, trace) = neutral_runs
    np.testing.assert_array_equal(cached, plain)
    np.testing.assert_array_equal(neutral, forced)
    np.testing.assert_allclose(neutral, plain, atol=1e-5, rtol=0)
    assert (np.asarray(trace.route) == 1).all()
    assert not np.asarray(trace.skipped).any()


def python_loop(pipe: WanPipeline, settings: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents, routes and skips of the same policies: dictionaries for state, `if` for decisions, block after block."""
    text, latents, infos, *_ = arguments(pipe, settings)
    parts = pipe.parts(settings)
    contexts = parts.denoise.contexts(pipe.components.experts, text)
    scheduler = parts.scheduler
    state = scheduler.init(latents)
    shape = (settings.num_inference_steps, settings.branches, LAYERS)
    routes, skips = np.zeros((*shape, len(GROUPS)), int), np.zeros(shape, bool)
    known: dict[Any, dict[str, Any]] = {}
    for i in range(settings.num_inference_steps):
        info, velocities = jax.tree.map(lambda leaf, i=i: leaf[i], infos), []
        for e in range(settings.branches):
            context = jax.tree.map(lambda leaf, e=e: leaf[e], contexts[0].text)
            x = None
            for l in range(LAYERS):
                seen = known.setdefault((e, l), {"change": 0.0, "error": 0.0, "skips": 0, "count": 0, "fresh": False})
                skip = skips[i, e, l] = skips_now(pipe.recipe.cache, seen, i, settings.num_inference_steps)
                route = routes[i, e, l] = routes_now(pipe.recipe.precision, seen, i)
                x, out, delta, ratios = one_block(pipe, latents, info, context, l, route, x, seen.get("delta"), skip)
                remember(seen, skip, x - delta, delta, ratios)
            velocities.append(out)
        velocity = guide(jnp.stack(velocities), info.guidance)
        latents, state = scheduler.step(state, latents, velocity, info.solver)
    return np.asarray(latents), routes, skips


def skips_now(policy: TemporalDeltaCache, seen: dict[str, Any], step: int, steps: int) -> bool:
    if not policy.warmup <= step <= steps - 1 - policy.cooldown or seen["count"] < 2:
        return False
    return seen["error"] + seen["change"] < policy.tau and seen["skips"] < policy.max_skips


def routes_now(policy: PredictedPrecision, seen: dict[str, Any], step: int) -> list[int]:
    routes = []
    for group in range(len(GROUPS)):
        if step > 0 and not seen["fresh"] and seen["ratios"][group] > policy.outlier_ratio:
            routes.append(2)
        elif not seen["fresh"] or seen["gamma"] > policy.error_threshold:
            routes.append(1)
        else:
            routes.append(0)
    return routes


def remember(seen: dict[str, Any], skip: bool, entered: Any, delta: Any, ratios: list[float]) -> None:
    if skip:
        seen |= {"error": seen["error"] + seen["change"], "skips": seen["skips"] + 1, "fresh": False}
        return
    if "delta" in seen:
        seen["change"] = float(jnp.abs(delta - seen["delta"]).sum() / jnp.abs(seen["delta"]).sum())
    gamma = float(jnp.abs(delta).sum() / jnp.abs(entered).sum())
    seen |= {"gamma": gamma, "ratios": ratios, "delta": delta, "fresh": True}
    seen |= {"error": 0.0, "skips": 0, "count": seen["count"] + 1}


def one_block(pipe, latents, info, context, layer, route, x, delta, skip) -> Any:
    """Block `layer` as a model of its own: its output, the velocity if it were the last, its delta, outlier ratios."""
    take = lambda tree: jax.tree.map(lambda leaf: leaf[layer : layer + 1], tree)
    params = pipe.components.experts[0]
    sub = params | {"blocks": take(params["blocks"])}
    routes = pipe.recipe.precision.routes
    return _one_block(sub, latents, info, take(context), jnp.asarray(route), x, delta, routes=routes, skip=bool(skip))


@functools.partial(jax.jit, static_argnames=("routes", "skip"))
def _one_block(params, latents, info, context, route, x, delta, *, routes, skip) -> Any:
    config = dataclasses.replace(MICRO.transformer, num_layers=1)

    def observe(group: str, y: Any, _: Any) -> Any:
        return jnp.abs(y).max() / jnp.abs(y).mean()

    def run_block(compute: Any, entered: Any, memory: Any, decision: Any) -> Any:
        entered = entered if x is None else x
        y, notes = (entered + delta, None) if skip else compute(entered)
        ratios = [] if notes is None else [notes["inputs"][group] for group in GROUPS]
        return y, memory, {"y": y, "delta": y - entered, "ratios": ratios}

    timestep = jnp.broadcast_to(info.timestep, (1,))
    velocity, _, seen = wan.forward(
        params,
        config,
        latents,
        timestep,
        context,
        routes=routes,
        route_index=route[None],
        run_block=run_block,
        observe=observe,
    )
    first = jax.tree.map(lambda leaf: leaf[0], seen)
    return first["y"], velocity, first["delta"], first["ratios"]


def test_the_scan_decides_as_a_plain_loop_does(pipe):
    """Sums in another order differ by 1e-7; one decision that differed would show as one percent."""
    settings = pipe.settings(prompt=PROMPT, num_inference_steps=STEPS)
    latents, routes, skips = python_loop(pipe, settings)
    args = arguments(pipe, settings)
    found, trace = pipe.denoise_program(settings, args)(pipe.components.experts, *args)
    np.testing.assert_array_equal(trace.skipped, skips)
    np.testing.assert_array_equal(trace.route, routes)
    np.testing.assert_allclose(found, latents, atol=1e-5, rtol=0)
    assert 0.1 < skips.mean() < 0.7
    assert set(np.unique(routes[~skips])) == {0, 1, 2}


def test_the_result_tells_what_was_decided(pipe):
    result = pipe(PROMPT, num_inference_steps=STEPS)
    trace = result.trace
    assert trace.route.shape == (STEPS, 2, LAYERS, len(GROUPS))
    for each in (trace.skipped, trace.gamma, trace.change, trace.error):
        assert each.shape == (STEPS, 2, LAYERS)
    came_to = realised(trace, pipe.recipe.precision.routes)
    bits = np.array([4, 8, 16])[trace.route].mean(-1)
    np.testing.assert_allclose(came_to.mean_bits, bits[~trace.skipped].mean())
    np.testing.assert_allclose(came_to.mean_bits_with_skipped, np.where(trace.skipped, 0, bits).mean())
    assert came_to.skip_rate == trace.skipped.mean()
    assert came_to.mean_bits_with_skipped < came_to.mean_bits


def test_fifty_steps_are_one_program(pipe):
    """And another prompt, seed, guidance or shift needs no other."""
    settings = pipe.settings(prompt=PROMPT, num_inference_steps=50)
    args = arguments(pipe, settings)
    compiled = []
    listener = lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        program = pipe.denoise_program(settings, args)
        assert len(compiled) == 1
        _, trace = program(pipe.components.experts, *args)
        jax.block_until_ready(trace)
        assert len(compiled) == 1
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert np.asarray(trace.skipped).any()
    other = dataclasses.replace(settings, seed=5, guidance_scale=2.0, flow_shift=5.0)
    assert pipe.denoise_program(other, arguments(pipe, other)) is program


def test_too_few_steps_run_without_the_cache_and_say_so(pipe):
    settings = pipe.settings(prompt=PROMPT, num_inference_steps=2)
    assert "2 steps leave the delta cache nothing to skip" in pipe.notes(settings)[0]
    assert pipe.cache_bytes(settings) == 0
    assert pipe.parts(settings).cache == NoCache(measure=True)


def test_without_guidance_there_is_one_branch(pipe):
    settings = pipe.settings(prompt=PROMPT, num_inference_steps=STEPS, guidance_scale=1.0)
    trace = pipe.traced(settings)
    assert trace.skipped.shape == (STEPS, 1, LAYERS)
    assert trace.skipped.any()
    assert 2 * pipe.cache_bytes(settings) == pipe.cache_bytes(dataclasses.replace(settings, guidance_scale=3.0))


def test_a_budget_is_kept_and_one_too_small_is_named(pipe):
    settings = pipe.settings(prompt=PROMPT, num_inference_steps=STEPS)
    one = pipe.cache_bytes(settings) // LAYERS
    limited = lambda budget: with_policies(
        pipe, pipe.recipe.precision, dataclasses.replace(pipe.recipe.cache, budget_gb=budget / 1e9, order=(1, 0))
    )
    half = limited(one * 1.5)
    assert half.cache_bytes(settings) == one
    assert f"delta cache of 1 of {LAYERS} layers" in half.notes(settings)[0]
    assert half.parts(settings).cache.layers == (1,)
    with pytest.raises(UserError, match="--cache-budget-gb"):
        limited(one * 0.5).notes(settings)
