"""What all caches of block deltas share: where a delta is kept, how a block is skipped, what fits into a budget.

    computed    y = block(x), and y - x is kept in the place of its (branch, layer)
    skipped     y = x + what is kept there

A subclass decides when. Skipping every block of a step is the same as adding again what the whole stack added to its
input, so policies that skip whole steps are subclasses too; one decision a step then takes the place of one a block.
"""

import abc
import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sixbit_jax.errors import UserError, nearest
from sixbit_jax.policies import delta_store
from sixbit_jax.policies.base import PolicySpec
from sixbit_jax.policies.cache import AbstractCachePolicy, NoCache
from sixbit_jax.policies.measures import relative_change
from sixbit_jax.shapes import Blocks, Compute


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbstractDeltaReuse(AbstractCachePolicy):
    """`cache_format`: of what is kept, see `delta_store`.

    `layers` limits the cache to some layers; the others are computed at every step and take no memory. So does
    `budget_gb`, which takes as many layers as fit, those first in `order` first (calibration puts the layers first that
    skip most).
    """

    cache_format: str = "bf16"
    layers: tuple[int, ...] | None = None
    budget_gb: float | None = None
    order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.cache_format not in delta_store.formats():
            hint = nearest(self.cache_format, delta_store.formats())
            raise UserError(f'{type(self).__name__}: unknown cache_format "{self.cache_format}"; {hint}')

    @property
    @abc.abstractmethod
    def least_steps(self) -> int:
        """A run with fewer steps has none that could be skipped."""

    def for_run(self, spec: PolicySpec) -> tuple[AbstractCachePolicy, str | None]:
        self.refuse_missing()
        if spec.steps < self.least_steps:
            plural = "" if spec.steps == 1 else "s"
            note = f"{spec.steps} step{plural} leave the delta cache nothing to skip; it starts at {self.least_steps}"
            return NoCache(measure=True), note
        if self.budget_gb is None:
            return self, None
        order = tuple(range(spec.layers)) if self.order is None else self.order
        fitted = within_budget(self, spec, int(self.budget_gb * 1e9), order)
        kept = spec.layers if fitted.layers is None else len(fitted.layers)
        note = f"delta cache of {kept} of {spec.layers} layers, {fitted.nbytes(spec) / 1e6:.1f} MB"
        return dataclasses.replace(fitted, budget_gb=None, order=None), note

    def allocate(self, spec: PolicySpec) -> dict[str, Any]:
        """`place`: where a slot of the sampler lies in `deltas`, or -1."""
        place = self._places(spec)
        shape = (1, spec.tokens, spec.dim)
        deltas = delta_store.allocate(self.cache_format, int((place >= 0).sum()), shape)
        return {"place": jnp.asarray(place), "deltas": deltas}

    @property
    def whole_steps(self) -> bool:
        """Whether a step skips all blocks that have a cache or none."""
        return False

    def run_stack(
        self, blocks: Blocks, x: Float[Array, "b s d"], memory: Any, slots: Int[Array, " l"], skip: Bool[Array, " l"]
    ) -> tuple[Float[Array, "b s d"], Any, Any]:
        if not self.whole_steps or self.layers is not None:
            return super().run_stack(blocks, x, memory, slots, skip)

        def run(x: Array, memory: Any) -> tuple[Array, Any, Any]:
            return blocks(lambda compute, x, memory, decision: self._run(compute, x, memory, decision[0]), x, memory)

        no_notes = _zeros(jax.eval_shape(run, x, memory)[2])

        def reuse(x: Array, memory: Any) -> tuple[Array, Any, Any]:
            added = delta_store.add_all(self.cache_format, x, memory["deltas"], memory["place"][slots])
            return added, memory, no_notes

        return lax.cond(~skip.all(), run, reuse, x, memory)

    def run(
        self, compute: Compute, x: Float[Array, "b s d"], memory: Any, slot: Int[Array, ""], skip: Bool[Array, ""]
    ) -> tuple[Float[Array, "b s d"], Any, dict[str, Any]]:
        run = lambda x, memory: self._run(compute, x, memory, slot)
        no_notes = _zeros(jax.eval_shape(run, x, memory)[2])
        add = lambda x, memory: (x.astype(jnp.float32) + self._kept(memory, slot)).astype(x.dtype)
        reuse = lambda x, memory: (add(x, memory), memory, no_notes)
        # What passes the deltas through has to be the false branch: in the other, XLA would copy all of them.
        return lax.cond(~skip, run, reuse, x, memory)

    def _kept(self, memory: Any, slot: Int[Array, ""]) -> Float[Array, "b s d"]:
        return delta_store.read(self.cache_format, memory["deltas"], memory["place"][slot])

    def _run(
        self, compute: Compute, x: Float[Array, "b s d"], memory: Any, slot: Int[Array, ""]
    ) -> tuple[Float[Array, "b s d"], Any, dict[str, Any]]:
        y, notes = compute(x)
        place, deltas = memory["place"][slot], memory["deltas"]
        keep = lambda x, y, deltas: delta_store.keep(self.cache_format, x, y, deltas, place)
        if self.layers is None:
            kept = keep(x, y, deltas)
        else:
            measure = lambda x, y, deltas: delta_store.Kept(y, deltas, relative_change(x, y), jnp.float32(0))
            kept = lax.cond(place >= 0, keep, measure, x, y, deltas)
        return kept.y, memory | {"deltas": kept.store}, notes | {"gamma": kept.gamma, "change": kept.change}

    @property
    def measures(self) -> tuple[str, ...]:
        return ("gamma", "change")

    def nbytes(self, spec: PolicySpec) -> int:
        """What the deltas take."""
        return int(self.cached(spec).sum()) * spec.branches * _slot_bytes(self.cache_format, spec)

    def cached(self, spec: PolicySpec) -> Bool[np.ndarray, " l"]:
        """The layers that have a cache."""
        return self._places(spec)[: spec.layers] >= 0

    def _places(self, spec: PolicySpec) -> Int[np.ndarray, " slots"]:
        """Slots of the sampler are numbered branch by branch; those of layers without a cache get no place."""
        layers = range(spec.layers) if self.layers is None else self.layers
        place = np.full((spec.branches, spec.layers), -1, np.int32)
        chosen = sorted(set(layers))
        place[:, chosen] = np.arange(spec.branches * len(chosen)).reshape(spec.branches, -1)
        return place.reshape(-1)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda note: jnp.zeros(note.shape, note.dtype), shapes)


Reuse = TypeVar("Reuse", bound=AbstractDeltaReuse)


def within_budget(policy: Reuse, spec: PolicySpec, budget: int, order: tuple[int, ...]) -> Reuse:
    """`policy` with a cache for as many of its layers as fit into `budget` bytes.

    `order` has the layers that skip most first, as the trace of a run without a budget tells.
    """
    each = _slot_bytes(policy.cache_format, spec) * spec.branches
    count = budget // each
    if count < 1:
        raise UserError(
            f"--cache-budget-gb: {budget / 1e9:.3g} GB hold no layer; one takes {each / 1e9:.3g} GB as "
            f"{policy.cache_format}"
        )
    wanted = [layer for layer in order if policy.cached(spec)[layer]]
    return policy if count >= len(wanted) else dataclasses.replace(policy, layers=tuple(sorted(wanted[:count])))


def _slot_bytes(cache_format: str, spec: PolicySpec) -> int:
    return delta_store.slot_bytes(cache_format, (1, spec.tokens, spec.dim))
