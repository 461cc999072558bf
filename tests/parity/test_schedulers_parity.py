"""Schedules and whole trajectories against diffusers' schedulers, called as WanPipeline calls them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from sixbit_jax import schedulers
from sixbit_jax.schedulers import SOLVERS

pytestmark = pytest.mark.parity

SHIFTS = (1.0, 3.0, 5.0, 8.0)
MIX = np.random.default_rng(1).standard_normal((24, 24)).astype(np.float32) / 5


def reference(name: str, num_steps: int, shift: float) -> Any:
    if name == "unipc":
        scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, num_train_timesteps=1000
        )
    else:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(num_steps)
    scheduler.set_begin_index(0)
    return scheduler


def velocity(x: np.ndarray, timestep: float) -> np.ndarray:
    """A model that is neither linear in the latents nor constant in time."""
    return (np.tanh(x @ MIX + timestep / 300) * 1.5 + 0.3 * x).astype(np.float32)


@functools.cache
def jitted_step(name: str) -> Any:
    return jax.jit(schedulers.get(name).step)


@pytest.mark.parametrize("shift", [*SHIFTS, 0.7, 2.5, 12.0, 16.0])
@pytest.mark.parametrize("name", SOLVERS)
def test_sigmas_and_timesteps_are_equal(name: str, shift: float):
    for num_steps in (*range(1, 51), 100, 999):
        expected = reference(name, num_steps, shift)
        plan = schedulers.get(name).plan(num_steps, shift=shift, schedule="diffusers")
        np.testing.assert_array_equal(np.append(plan.sigma, np.float32(0)), expected.sigmas.numpy())
        np.testing.assert_array_equal(plan.timestep, expected.timesteps.numpy().astype(np.float32))


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("num_steps", [*range(1, 11), 14, 15, 20, 25, 30, 40, 50])
@pytest.mark.parametrize("name", SOLVERS)
def test_trajectories_are_equal(name: str, num_steps: int, shift: float, rng: np.random.Generator):
    solver, expected = schedulers.get(name), reference(name, num_steps, shift)
    plan = solver.plan(num_steps, shift=shift, schedule="diffusers")
    noise = rng.standard_normal((2, 24)).astype(np.float32)
    theirs, ours = torch.from_numpy(noise), jnp.asarray(noise)
    state, error, scale = solver.init(ours), 0.0, 0.0
    for i, timestep in enumerate(expected.timesteps):
        info = jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf[i]), plan)
        their_velocity = torch.from_numpy(velocity(theirs.numpy(), float(timestep)))
        theirs = expected.step(their_velocity, timestep, theirs, return_dict=False)[0]
        our_velocity = jnp.asarray(velocity(np.asarray(ours), float(timestep)))
        ours, state = jitted_step(name)(state, ours, our_velocity, info)
        error = max(error, float(np.abs(theirs.numpy() - np.asarray(ours)).max()))
        scale = max(scale, float(theirs.abs().max()))
    # The reference solves its 2 x 2 systems in f32, where small steps cost a few digits; ours are solved in f64.
    assert error <= 1e-5 * scale
