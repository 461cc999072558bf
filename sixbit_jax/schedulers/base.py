"""The contract between the sampler and a solver of the flow ODE dx/dσ = velocity(x, σ).

A run goes from noise (σ near 1) to data (σ = 0):

    num_steps, shift, schedule --plan--> StepPlan (numpy, leaves lead with the steps)
                                            | xs of lax.scan
    latents --init--> state --step(state, latents, velocity, info)--> latents, state

A solver is a frozen dataclass without arrays, so it can be closed over or be a static argument. All numbers that
depend on the schedule travel in the plan as data: one compiled sampler serves every shift and schedule of the same
step count.
"""

import dataclasses
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
from jaxtyping import Array, Float

# Fields of a pytree class also hold what jax's tree functions put there (shapes, axes, specs), so they carry a name
# but no checked type.
PerStep: TypeAlias = Any  # f32, leading with "i" in a plan and without that axis in one step's slice
Latents: TypeAlias = Any  # f32, the shape of the latents
State: TypeAlias = Any  # a pytree that belongs to the solver


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepPlan:
    """What every step needs to know, computed before the run. One step's slice of it is the `info` of `step`."""

    timestep: PerStep  # what the model is told, in [0, 1000]
    sigma: PerStep  # noise level on entering the step
    coefficients: Any  # a pytree of PerStep leaves that belongs to the solver


@runtime_checkable
class Scheduler(Protocol):
    """A solver together with the schedules it knows."""

    def plan(self, num_steps: int, *, shift: float | int, schedule: str) -> StepPlan:
        """The constants of every step.

        `schedule` is one of `SCHEDULES`; each solver takes the grid its reference uses under that name.
        """
        ...

    def init(self, latents: Float[Array, "..."]) -> State:
        """The state before the first step."""
        ...

    def step(
        self, state: State, latents: Float[Array, "..."], velocity: Float[Array, "..."], info: StepPlan
    ) -> tuple[Float[Array, "..."], State]:
        """Move the f32 latents one step towards the data."""
        ...
