"""How the linears of every block multiply at a step."""

import abc
import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from sixbit_jax.policies.base import AbstractPolicy, PolicySpec, StepInfo
from sixbit_jax.routes import Route


class AbstractPrecisionPolicy(AbstractPolicy, abc.ABC):
    """Picks one of `routes` for every linear group of every layer."""

    @property
    @abc.abstractmethod
    def routes(self) -> tuple[Route, ...]:
        """The routes a decision indexes. Each is one compiled branch; a single one compiles to no branch."""

    @abc.abstractmethod
    def init(self, spec: PolicySpec) -> Any:
        """State of one guidance branch before the first step."""

    @abc.abstractmethod
    def decide(self, spec: PolicySpec, state: Any, info: StepInfo, skip: Bool[Array, " l"]) -> Int[Array, "l g"]:
        """Route of every layer and group. `skip`: the layers that the cache policy will not compute at this step."""

    @abc.abstractmethod
    def update(self, spec: PolicySpec, state: Any, info: StepInfo, skipped: Bool[Array, " l"], observed: Any) -> Any:
        """State after a step. `observed`: what the cache policy's block runner returned, stacked over layers."""

    @property
    def needs(self) -> tuple[str, ...]:
        """What `observed` has to hold: "gamma" is measured by the cache policy, "inputs" by the model."""
        return ()


@dataclasses.dataclass(frozen=True)
class FixedPrecision(AbstractPrecisionPolicy):
    """The same route everywhere, at every step.

    >>> FixedPrecision().routes
    (Route(act=None, implementation=None),)
    """

    route: Route = Route()

    @property
    def routes(self) -> tuple[Route, ...]:
        return (self.route,)

    def init(self, spec: PolicySpec) -> tuple[()]:
        return ()

    def decide(self, spec: PolicySpec, state: tuple[()], info: StepInfo, skip: Bool[Array, " l"]) -> Int[Array, "l g"]:
        return jnp.zeros((spec.layers, len(spec.groups)), jnp.int32)

    def update(
        self, spec: PolicySpec, state: tuple[()], info: StepInfo, skipped: Bool[Array, " l"], observed: Any
    ) -> tuple[()]:
        return state
