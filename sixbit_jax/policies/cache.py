"""Which blocks run at a step, and what stands in for those that do not.

Besides its small per-branch state a cache policy may own `memory`: large arrays shared by all branches, with one slot
per (branch, layer). Memory rides in the carry of the scan over blocks, so a policy updates it in place; as a scan
output it would be copied whole at every step.
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sixbit_jax.formats import stored_bytes
from sixbit_jax.policies.base import AbstractPolicy, PolicySpec, StepInfo
from sixbit_jax.policies.measures import relative_change
from sixbit_jax.shapes import Blocks, Compute


class AbstractCachePolicy(AbstractPolicy, abc.ABC):
    """Decides per layer, then wraps each block with `run`, or the stack of them with `run_stack`."""

    @abc.abstractmethod
    def init(self, spec: PolicySpec) -> Any:
        """State of one guidance branch before the first step."""

    @abc.abstractmethod
    def allocate(self, spec: PolicySpec) -> Any:
        """The memory: leaves lead with `spec.branches * spec.layers` slots."""

    @abc.abstractmethod
    def decide(self, spec: PolicySpec, state: Any, info: StepInfo) -> Bool[Array, " l"]:
        """True where a layer is skipped."""

    def agree(self, spec: PolicySpec, skip: Bool[Array, "e l"]) -> Bool[Array, "e l"]:
        """What is skipped, of what the branches decided: each its own, unless a policy lets them decide together."""
        return skip

    @abc.abstractmethod
    def run(
        self, compute: Compute, x: Float[Array, "b s d"], memory: Any, slot: Int[Array, ""], skip: Bool[Array, ""]
    ) -> tuple[Float[Array, "b s d"], Any, Any]:
        """One block: its output, the memory, and a dict of what the policies want to know of it.

        The dict holds the notes of `compute`, or zeros for them where it did not run.
        """

    def run_stack(
        self, blocks: Blocks, x: Float[Array, "b s d"], memory: Any, slots: Int[Array, " l"], skip: Bool[Array, " l"]
    ) -> tuple[Float[Array, "b s d"], Any, Any]:
        """All blocks, in `run` one by one; a policy that decides for all of them at once need not ask each."""
        return blocks(lambda compute, x, memory, decision: self.run(compute, x, memory, *decision), x, memory)

    @property
    def measures(self) -> tuple[str, ...]:
        """The names that `run` adds to the notes."""
        return ()

    @abc.abstractmethod
    def update(self, spec: PolicySpec, state: Any, info: StepInfo, skipped: Bool[Array, " l"], observed: Any) -> Any:
        """State after a step; `observed` is stacked over layers."""

    def recall(self, state: Any) -> dict[str, Any]:
        """What of the state after a step belongs in the trace, next to what was observed."""
        return {}

    def for_run(self, spec: PolicySpec) -> tuple["AbstractCachePolicy", str | None]:
        """The policy as these sizes allow it, and what a user should know of the difference."""
        self.refuse_missing()
        return self, None

    def nbytes(self, spec: PolicySpec) -> int:
        """What the memory takes on the device."""
        return stored_bytes(jax.eval_shape(lambda: self.allocate(spec)))


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
    ) -> tuple[Float[Array, "b s d"], tuple[()], dict[str, Any]]:
        y, notes = compute(x)
        return y, memory, notes | {"gamma": relative_change(x, y)} if self.measure else notes

    @property
    def measures(self) -> tuple[str, ...]:
        return ("gamma",) if self.measure else ()

    def update(
        self, spec: PolicySpec, state: tuple[()], info: StepInfo, skipped: Bool[Array, " l"], observed: Any
    ) -> tuple[()]:
        return state
