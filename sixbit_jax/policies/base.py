"""What every policy is told: the static facts of a run, and the constants of one step.

A policy is a frozen config plus explicit state. The sampler owns the state and threads it through its scan:

    init(spec) -> state                             once
    decide(spec, state, info) -> decision           before a step: pure and cheap
    update(spec, state, info, observed) -> state    after it

Thresholds have no defaults. A policy that has not been told its own says which it is `missing` and does not run; they
come from a calibration (`sixbit_jax.presets`) or from the user.

The cache decides first, and the precision policy is told which layers will be skipped.

Guidance branches keep separate state: the sampler maps these three over branches, so none of them sees the branch axis.
Where branches should not act apart, a cache policy lets them `agree` on their decisions.
"""

import dataclasses
from typing import Any

import jax

from sixbit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PolicySpec:
    """Sizes a policy may need for its state. `groups` names the linears of a block that share a precision decision."""

    layers: int
    groups: tuple[str, ...]
    branches: int
    steps: int
    tokens: int
    dim: int
    dtype: str


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepInfo:
    """Constants of a step, worked out before the run.

    All steps together, the leaves lead with "i" and are scanned over.
    """

    step: Any  # i32, counts from 0
    last: Any  # i32, index of the last step
    timestep: Any  # f32, what the model is told
    guidance: Any  # f32, scale of classifier-free guidance
    expert: Any  # i32, which of the pipeline's transformers runs
    solver: Any  # the scheduler's own slice of its plan


class AbstractPolicy:
    """What precision and cache policies share."""

    @property
    def missing(self) -> tuple[str, ...]:
        """The fields without which it cannot run and that are None."""
        return ()

    def refuse_missing(self) -> None:
        if self.missing:
            raise UserError(f"{type(self).__name__}: needs {' and '.join(self.missing)}; calibrate, or set it by hand")
