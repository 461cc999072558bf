"""Solvers and schedules without a reference: known values, order of convergence, one compiled program, bad input."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax import schedulers
from sixbit_jax.errors import UserError
from sixbit_jax.schedulers import SCHEDULES, SOLVERS, Scheduler, StepPlan

# The original repository's timesteps for 50 steps at shift 3, from its definition in exact arithmetic:
# floor(1000 · 3s / (1 + 2s)) with s = 0.999 · k / 50.
WAN_50_STEPS_SHIFT_3 = [3000 * 999 * k // (50_000 + 2 * 999 * k) for k in range(50, 0, -1)]


def run_scan(solver: Scheduler, plan: StepPlan, latents: jax.Array, velocity: Callable) -> jax.Array:
    def step(carry: Any, info: StepPlan) -> tuple[Any, None]:
        latents, state = carry
        return solver.step(state, latents, velocity(latents, info.sigma), info), None

    (latents, _), _ = jax.lax.scan(step, (latents, solver.init(latents)), plan)
    return latents


def run_loop(solver: Scheduler, plan: StepPlan, latents: jax.Array, velocity: Callable) -> jax.Array:
    state = solver.init(latents)
    for i in range(plan.sigma.shape[0]):
        info = jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf[i]), plan)
        latents, state = solver.step(state, latents, velocity(latents, info.sigma), info)
    return latents


def nonlinear_velocity(x: jax.Array, sigma: jax.Array) -> jax.Array:
    return jnp.tanh(2 * x + sigma) + 0.3 * x


def test_wan_timesteps_are_those_of_the_original_repository():
    assert WAN_50_STEPS_SHIFT_3[:4] == [999, 992, 985, 978]
    assert WAN_50_STEPS_SHIFT_3[-1] == 57
    for solver in SOLVERS.values():
        plan = solver.plan(50, shift=3, schedule="wan")
        assert plan.timestep.tolist() == WAN_50_STEPS_SHIFT_3


def test_diffusers_unipc_timesteps_at_50_steps_shift_3():
    timestep = schedulers.get("unipc").plan(50, shift=3, schedule="diffusers").timestep
    assert timestep[:4].tolist() == [999, 993, 986, 979]
    assert timestep[-1] == 60


def test_schedules_differ_by_the_documented_gap():
    gaps = []
    for shift in (3, 5, 8):
        sigmas = [schedulers.get("unipc").plan(50, shift=shift, schedule=name).sigma for name in SCHEDULES]
        gaps.append(round(float(np.abs(sigmas[0] - sigmas[1]).max()), 3))
    assert gaps == [0.003, 0.004, 0.006]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
def test_scan_equals_python_loop(name: str, schedule: str, num_steps: int, rng: np.random.Generator):
    solver = schedulers.get(name)
    plan = solver.plan(num_steps, shift=5.0, schedule=schedule)
    noise = jnp.asarray(rng.standard_normal((2, 3, 4)), jnp.float32)
    scanned = run_scan(solver, plan, noise, nonlinear_velocity)
    looped = run_loop(solver, plan, noise, nonlinear_velocity)
    # The same operations, fused differently: a rounding or two per step.
    np.testing.assert_allclose(scanned, looped, atol=num_steps * 4 * np.finfo(np.float32).eps * np.abs(noise).max())


@pytest.mark.parametrize("name", SOLVERS)
def test_one_compiled_sampler_serves_every_shift_and_schedule(name: str):
    solver, traces = schedulers.get(name), []

    @jax.jit
    def run(plan: StepPlan, noise: jax.Array) -> jax.Array:
        traces.append(name)
        return run_scan(solver, plan, noise, nonlinear_velocity)

    plans = [solver.plan(4, shift=shift, schedule=schedule) for shift in (1, 3, 8.5) for schedule in SCHEDULES]
    results = [np.asarray(run(plan, jnp.ones((2, 2)))) for plan in plans]
    assert len(traces) == 1
    assert len({result.tobytes() for result in results}) == len(plans)


@pytest.mark.parametrize("name", SOLVERS)
def test_plan_is_f32_and_leads_with_the_steps(name: str):
    plan = schedulers.get(name).plan(6, shift=3, schedule="wan")
    assert all(leaf.dtype == np.float32 and leaf.shape[0] == 6 for leaf in jax.tree.leaves(plan))


@pytest.mark.parametrize("name", SOLVERS)
def test_state_is_a_fixed_point_of_the_step(name: str):
    solver = schedulers.get(name)
    x = jax.ShapeDtypeStruct((1, 2, 3), jnp.float32)
    info = jax.tree.map(lambda leaf: leaf[0], solver.plan(3, shift=3, schedule="wan"))
    state = jax.eval_shape(solver.init, x)
    latents, after = jax.eval_shape(solver.step, state, x, jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), info)
    assert (latents.shape, latents.dtype) == (x.shape, x.dtype)
    assert after == state


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("unipc", 2)])
def test_order_of_convergence(name: str, order: int):
    """Data from N(0, ¼) has a flow with a closed form: x(σ) grows with the standard deviation √((1-σ)²/4 + σ²)."""
    solver = schedulers.get(name)

    def deviation(sigma: Any) -> Any:
        return ((1 - sigma) ** 2 / 4 + sigma**2) ** 0.5

    def velocity(x: jax.Array, sigma: jax.Array) -> jax.Array:
        return x * (sigma - (1 - sigma) / 4) / deviation(sigma) ** 2

    def error(num_steps: int) -> float:
        plan = solver.plan(num_steps, shift=3, schedule="wan")
        end = run_scan(solver, plan, jnp.full(1, deviation(plan.sigma[0]), jnp.float32), velocity)
        return abs(float(end[0]) - deviation(0.0))

    # Doubling the steps divides the error by 2^order; half a power is left for higher-order terms.
    assert error(8) / error(16) > 2 ** (order - 0.5)
    assert error(16) / error(32) > 2 ** (order - 0.5)


def test_unknown_names_point_at_the_nearest():
    with pytest.raises(UserError, match=r'--solver.*"unipcc".*did you mean "unipc"'):
        schedulers.get("unipcc")
    for solver in SOLVERS.values():
        with pytest.raises(UserError, match=r'--schedule.*"difusers".*did you mean "diffusers"'):
            solver.plan(4, shift=3, schedule="difusers")


@pytest.mark.parametrize("num_steps", [0, -3])
def test_step_count_below_one_is_refused(num_steps: int):
    with pytest.raises(UserError, match="--num-inference-steps"):
        schedulers.get("unipc").plan(num_steps, shift=3, schedule="wan")


@pytest.mark.parametrize("shift", [0, -1.0, float("nan"), float("inf"), 1e6])
def test_unusable_shifts_are_refused(shift: float):
    with pytest.raises(UserError, match="--flow-shift"):
        schedulers.get("unipc").plan(1000, shift=shift, schedule="wan")


def test_a_first_level_that_rounds_to_one_is_refused():
    with pytest.raises(UserError, match=r"--flow-shift.*rounds to 1"):
        schedulers.get("unipc").plan(2, shift=1e5, schedule="wan")
    assert schedulers.get("euler").plan(2, shift=1e5, schedule="wan").sigma[0] == 1
