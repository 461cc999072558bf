"""Which blocks run at a step, and what stands in for those that do not.

Besides its small per-branch state a cache policy may own `memory`: large arrays shared by all branches, with one slot
per (branch, layer). Memory rides in the carry of the scan over blocks, so a policy updates it in place; as a scan
output it would be copied whole at every step.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sixbit_jax.policies.base import PolicySpec, StepInfo

Compute = Callable[[Array], Array]


class AbstractCachePolicy(abc.ABC):
    """Decides per layer, then wraps each block with `run`."""

    @abc.abstractmethod
    def init(self, spec: PolicySpec) -> Any:
        """State of one guidance branch before the first step."""

    @abc.abstractmethod
    def allocate(self, spec: PolicySpec) -> Any:
        """The memory: leaves lead with `spec.branches * spec.layers` slots."""

    @abc.abstractmethod
    def decide(self, spec: PolicySpec, state: Any, info: StepInfo) -> Bool[Array, " l"]:
        """True where a layer is skipped."""

    @abc.abstractmethod
    def run(
        self, compute: Compute, x: Float[Array, "b s d"], memory: Any, slot: Int[Array, ""], skip: Bool[Array, ""]
    ) -> tuple[Float[Array, "b s d"], Any, Any]:
        """One block: its output, the memory, and what the policies want to know of it (a pytree of scalars)."""

    @abc.abstractmethod
    def update(self, spec: PolicySpec, state: Any, info: StepInfo, skipped: Bool[Array, " l"], observed: Any) -> Any:
        """State after a step; `observed` is stacked over layers."""


@dataclasses.dataclass(frozen=True)
class NoCache(AbstractCachePolicy):
    """Every block runs at every step.

    With `measure` it observes Γ = ‖Y − X‖₁ / ‖X‖₁ of every block, at the price of one pass over the activations.
    """

    measure: bool = False

    def init(self, spec: PolicySpec) -> tuple[()]:
        return ()

    def allocate(self, spec: PolicySpec) -> tuple[()]:
        return ()

    def decide(self, spec: PolicySpec, state: tuple[()], info: StepInfo) -> Bool[Array, " l"]:
        return jnp.zeros((spec.layers,), bool)

    def run(
        self, compute: Compute, x: Float[Array, "b s d"], memory: tuple[()], slot: Int[Array, ""], skip: Bool[Array, ""]
    ) -> tuple[Float[Array, "b s d"], tuple[()], dict[str, Float[Array, ""]]]:
        y = compute(x)
        return y, memory, {"gamma": relative_change(x, y)} if self.measure else {}

    def update(
        self, spec: PolicySpec, state: tuple[()], info: StepInfo, skipped: Bool[Array, " l"], observed: Any
    ) -> tuple[()]:
        return state


def relative_change(x: Float[Array, "b s d"], y: Float[Array, "b s d"]) -> Float[Array, ""]:
    """Γ of 6Bit-Diffusion: the L1 size of what a block adds, relative to its input."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.abs(y - x).sum() / jnp.abs(x).sum()
