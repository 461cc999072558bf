"""Euler's method: follow the velocity in a straight line to the next noise level."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sixbit_jax.schedulers import sigmas
from sixbit_jax.schedulers.base import StepPlan

_SCHEDULES = {"diffusers": sigmas.diffusers_euler, "wan": sigmas.wan}


@dataclasses.dataclass(frozen=True)
class FlowEuler:
    """First order, without memory. Equal to diffusers' FlowMatchEulerDiscreteScheduler with a fixed shift."""

    def plan(self, num_steps: int, *, shift: float | int, schedule: str) -> StepPlan:
        """`coefficients` are the (negative) changes of sigma."""
        grid = sigmas.make_schedule(_SCHEDULES, schedule, num_steps, shift)
        return StepPlan(grid.timesteps, grid.sigmas[:-1], np.diff(grid.sigmas))

    def init(self, latents: Float[Array, "..."]) -> tuple[()]:
        """Euler remembers nothing."""
        return ()

    def step(
        self, state: tuple[()], latents: Float[Array, "*latents"], velocity: Float[Array, "*latents"], info: StepPlan
    ) -> tuple[Float[Array, "*latents"], tuple[()]]:
        """`latents + Δσ · velocity`, in f32."""
        return latents + info.coefficients * velocity.astype(jnp.float32), state
