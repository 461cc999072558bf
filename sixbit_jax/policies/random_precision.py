"""Routes drawn by lot: what a predictor has to beat at the same average width."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from sixbit_jax.errors import UserError
from sixbit_jax.policies.base import PolicySpec, StepInfo
from sixbit_jax.policies.precision import AbstractPrecisionPolicy
from sixbit_jax.routes import Route


@dataclasses.dataclass(frozen=True)
class RandomPrecision(AbstractPrecisionPolicy):
    """The high route for `high_share` of all layers and groups at every step, and for all at the first.

    Branches draw the same. Exactly the share is drawn at each step, rounded to whole groups; `once`: one lot for all
    steps.
    """

    high_share: float
    seed: int = 0
    once: bool = False
    low: Route = Route("nvfp4")
    high: Route = Route("int8")

    def __post_init__(self) -> None:
        if not 0 <= self.high_share <= 1:
            raise UserError(f"RandomPrecision: high_share is {self.high_share}, needs a number from 0 to 1")

    @property
    def routes(self) -> tuple[Route, ...]:
        return (self.low, self.high)

    def init(self, spec: PolicySpec) -> tuple[()]:
        return ()

    def decide(self, spec: PolicySpec, state: tuple[()], info: StepInfo, skip: Bool[Array, " l"]) -> Int[Array, "l g"]:
        shape = (spec.layers, len(spec.groups))
        key = jax.random.fold_in(jax.random.key(self.seed), 0 if self.once else info.step)
        rank = jax.random.permutation(key, spec.layers * len(spec.groups)).reshape(shape)
        count = round(self.high_share * spec.layers * len(spec.groups))
        return ((rank < count) | (info.step == 0)).astype(jnp.int32)

    def update(
        self, spec: PolicySpec, state: tuple[()], info: StepInfo, skipped: Bool[Array, " l"], observed: Any
    ) -> tuple[()]:
        return state
