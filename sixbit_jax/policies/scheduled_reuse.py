"""Whole steps skipped by a plan that is known before the run: what MagCache and TeaCache come to on Wan.

Their indicators depend on the timestep alone, so the steps they skip are the same for every prompt and can be worked
out once (`skip_schedules`).
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from sixbit_jax.errors import UserError
from sixbit_jax.policies.base import PolicySpec, StepInfo
from sixbit_jax.policies.delta_reuse import AbstractDeltaReuse


@dataclasses.dataclass(frozen=True)
class ScheduledReuse(AbstractDeltaReuse):
    """Every block is skipped at `steps`, which count from 0; the first step cannot be."""

    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.steps, default=1) < 1:
            raise UserError(f"ScheduledReuse: steps has {min(self.steps)}; the first that can be skipped is 1")

    @property
    def whole_steps(self) -> bool:
        return True

    @property
    def least_steps(self) -> int:
        return min(self.steps, default=0) + 1

    def init(self, spec: PolicySpec) -> tuple[()]:
        return ()

    def decide(self, spec: PolicySpec, state: tuple[()], info: StepInfo) -> Bool[Array, " l"]:
        planned = jnp.asarray(np.isin(np.arange(spec.steps), self.steps))[info.step]
        return planned & jnp.asarray(self.cached(spec))

    def update(
        self, spec: PolicySpec, state: tuple[()], info: StepInfo, skipped: object, observed: object
    ) -> tuple[()]:
        return state
