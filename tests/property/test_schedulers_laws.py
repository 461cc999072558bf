"""Laws of schedules and solvers that hold for every step count and shift."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixbit_jax import schedulers
from sixbit_jax.schedulers import SCHEDULES, SOLVERS, StepPlan
from sixbit_jax.schedulers.sigmas import shift_sigmas

EPS = np.finfo(np.float32).eps

# The machines that run this are shared: a slow example is no failure.
no_deadline = settings(deadline=None)
steps = st.integers(1, 120)
shifts = st.floats(0.2, 20)
names = st.sampled_from(sorted(SOLVERS))
schedule_names = st.sampled_from(SCHEDULES)


def edges(plan: StepPlan) -> np.ndarray:
    return np.append(plan.sigma, np.float32(0))


@no_deadline
@given(names, schedule_names, steps, shifts)
def test_noise_falls_strictly_from_near_one_to_zero(name: str, schedule: str, num_steps: int, shift: float):
    plan = schedulers.get(name).plan(num_steps, shift=shift, schedule=schedule)
    assert plan.sigma.shape == plan.timestep.shape == (num_steps,)
    assert np.all(np.diff(edges(plan)) < 0)
    # diffusers shifts the ends of Euler's grid in f32, which can overshoot 1 by a rounding.
    assert 0.99 < plan.sigma[0] <= 1 + 4 * EPS / min(shift, 1)


@no_deadline
@given(names, schedule_names, steps, shifts)
def test_timesteps_follow_the_noise(name: str, schedule: str, num_steps: int, shift: float):
    plan = schedulers.get(name).plan(num_steps, shift=shift, schedule=schedule)
    ahead = 1000 * plan.sigma.astype(np.float64) - plan.timestep
    # Truncation takes off less than 1; sigma itself was rounded to f32 after the truncation.
    assert np.all(ahead > -1000 * EPS) and np.all(ahead < 1 + 1000 * EPS)


@no_deadline
@given(names, st.sampled_from([("wan", 0.999, 0.0), ("diffusers", 1.0, 0.001)]), steps)
def test_shift_one_leaves_the_grid_evenly_spaced(name: str, grid: tuple[str, float, float], num_steps: int):
    schedule, first, last = grid
    plan = schedulers.get(name).plan(num_steps, shift=1, schedule=schedule)
    ends_inside = name == "euler" and schedule == "diffusers"
    points = np.linspace(first, last, num_steps if ends_inside else num_steps + 1)[:num_steps]
    # 1e-6: UniPC's first level is lowered by that much.
    np.testing.assert_allclose(plan.sigma, points, rtol=0, atol=1e-6 + EPS)


@no_deadline
@given(st.lists(st.just(0.0) | st.floats(1e-6, 1), min_size=1, max_size=8), shifts, shifts)
def test_shifts_multiply(points: list[float], first: float, second: float):
    sigmas = np.array(points)
    twice = shift_sigmas(shift_sigmas(sigmas, first), second)
    np.testing.assert_allclose(twice, shift_sigmas(sigmas, first * second), rtol=1e-12)


@pytest.mark.parametrize("name", sorted(SOLVERS))
@given(schedule=schedule_names, num_steps=steps, shift=shifts, seed=st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_straight_paths_are_followed_exactly(name: str, schedule: str, num_steps: int, shift: float, seed: int):
    """A constant velocity is a constant data prediction: any step count lands on the data."""
    solver = schedulers.get(name)
    plan = solver.plan(num_steps, shift=shift, schedule=schedule)
    data, velocity = np.random.default_rng(seed).standard_normal((2, 5)).astype(np.float32)
    latents = jnp.asarray(data + plan.sigma[0] * velocity)
    state = solver.init(latents)
    step = jax.jit(solver.step)
    for i in range(num_steps):
        info = jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf[i]), plan)
        latents, state = step(state, latents, jnp.asarray(velocity), info)
    # Each step rounds its weighted sums a few times; UniPC damps old errors (its weight of x_s is below 1).
    scale = np.abs(data).max() + np.abs(velocity).max()
    np.testing.assert_allclose(latents, data, rtol=0, atol=EPS * scale * (8 + 2 * num_steps))
