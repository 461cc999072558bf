"""Temporal Delta Cache of 6Bit-Diffusion: a block whose delta (output - input) is stable adds the last one again.

    change     relative L1 difference of a block's last two computed deltas
    error      the changes of all reuses since the last computation, added up: what reuse is assumed to have cost
    skip       if error + change < tau, not too often in a row, and neither at the start nor at the end of the run

While a block is skipped its change cannot be measured; the last one stands for every reuse. Branches decide apart.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sixbit_jax.errors import UserError, nearest
from sixbit_jax.policies import delta_store
from sixbit_jax.policies.base import PolicySpec, StepInfo
from sixbit_jax.policies.cache import AbstractCachePolicy, Compute
from sixbit_jax.policies.measures import relative_change


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeltaState:
    """What one branch remembers of each layer."""

    change: Any  # f32 (l): of the last two computed deltas
    error: Any  # f32 (l): what the reuses since then are assumed to have cost
    skips: Any  # i32 (l): in a row
    computed: Any  # i32 (l): how often so far


@dataclasses.dataclass(frozen=True)
class TemporalDeltaCache(AbstractCachePolicy):
    """`tau`: the error at which a block is computed again. 0 computes always; the larger, the more is skipped.

    The first `warmup` and the last `cooldown` steps compute every block. `layers` limits the cache to some layers (see
    `within_budget`); the others are computed at every step and take no memory.
    """

    tau: float
    max_skips: int = 2
    warmup: int = 2
    cooldown: int = 1
    cache_format: str = "bf16"
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.cache_format not in delta_store.formats():
            hint = nearest(self.cache_format, delta_store.formats())
            raise UserError(f'TemporalDeltaCache: unknown cache_format "{self.cache_format}"; {hint}')
        for name, least in (("tau", 0), ("max_skips", 0), ("warmup", 0), ("cooldown", 0)):
            if not getattr(self, name) >= least:
                raise UserError(f"TemporalDeltaCache: {name} is {getattr(self, name)}, needs at least {least}")

    def init(self, spec: PolicySpec) -> DeltaState:
        zeros = jnp.zeros((spec.layers,), jnp.float32)
        return DeltaState(zeros, zeros, zeros.astype(jnp.int32), zeros.astype(jnp.int32))

    def allocate(self, spec: PolicySpec) -> dict[str, Any]:
        """`place`: where a slot of the sampler lies in `deltas`, or -1."""
        place = self._places(spec)
        shape = (1, spec.tokens, spec.dim)
        deltas = delta_store.allocate(self.cache_format, int((place >= 0).sum()), shape)
        return {"place": jnp.asarray(place), "deltas": deltas}

    def decide(self, spec: PolicySpec, state: DeltaState, info: StepInfo) -> Bool[Array, " l"]:
        """Two deltas have to be known before a change is."""
        in_time = (info.step >= self.warmup) & (info.step <= info.last - self.cooldown)
        stable = state.error + state.change < self.tau
        cached = jnp.asarray(self._places(spec)[: spec.layers] >= 0)
        return in_time & stable & cached & (state.computed >= 2) & (state.skips < self.max_skips)

    def run(
        self, compute: Compute, x: Float[Array, "b s d"], memory: Any, slot: Int[Array, ""], skip: Bool[Array, ""]
    ) -> tuple[Float[Array, "b s d"], Any, dict[str, Any]]:
        place = memory["place"][slot]
        read = functools.partial(delta_store.read, self.cache_format)
        no_notes = jax.tree.map(lambda note: jnp.zeros(note.shape, note.dtype), jax.eval_shape(compute, x)[1])

        def reuse(x: Array, deltas: Any) -> tuple[Array, Any, Any]:
            y = (x.astype(jnp.float32) + read(deltas, place)).astype(x.dtype)
            return y, deltas, no_notes | {"gamma": jnp.float32(0), "change": jnp.float32(0)}

        def run(x: Array, deltas: Any) -> tuple[Array, Any, Any]:
            y, notes = compute(x)
            if self.layers is None:
                deltas, change = keep(x, y, deltas)
            else:
                deltas, change = lax.cond(place >= 0, keep, lambda x, y, deltas: (deltas, jnp.float32(0)), x, y, deltas)
            return y, deltas, notes | {"gamma": relative_change(x, y), "change": change}

        def keep(x: Array, y: Array, deltas: Any) -> tuple[Any, Array]:
            delta = y.astype(jnp.float32) - x.astype(jnp.float32)
            old = read(deltas, place)
            change = jnp.abs(delta - old).sum() / jnp.maximum(jnp.abs(old).sum(), jnp.finfo(jnp.float32).tiny)
            # Never below zero; but now the write has to wait for the read, and XLA updates in place. Without a reason
            # to wait it keeps a copy of all deltas to read from.
            after = place + (change < 0).astype(place.dtype)
            return delta_store.write(self.cache_format, deltas, after, delta), change

        # What passes the deltas through has to be the false branch: in the other, XLA would copy all of them.
        y, deltas, observed = lax.cond(~skip, run, reuse, x, memory["deltas"])
        return y, memory | {"deltas": deltas}, observed

    def update(
        self, spec: PolicySpec, state: DeltaState, info: StepInfo, skipped: Bool[Array, " l"], observed: Any
    ) -> DeltaState:
        return DeltaState(
            change=jnp.where(skipped, state.change, observed["change"]),
            error=jnp.where(skipped, state.error + state.change, 0.0),
            skips=jnp.where(skipped, state.skips + 1, 0),
            computed=jnp.where(skipped, state.computed, state.computed + 1),
        )

    @property
    def measures(self) -> tuple[str, ...]:
        return ("gamma", "change")

    def nbytes(self, spec: PolicySpec) -> int:
        """What the deltas take."""
        cached = int((self._places(spec) >= 0).sum())
        return cached * delta_store.slot_bytes(self.cache_format, (1, spec.tokens, spec.dim))

    def _places(self, spec: PolicySpec) -> np.ndarray:
        """Slots of the sampler are numbered branch by branch; those of layers without a cache get no place."""
        layers = range(spec.layers) if self.layers is None else self.layers
        place = np.full((spec.branches, spec.layers), -1, np.int32)
        chosen = sorted(set(layers))
        place[:, chosen] = np.arange(spec.branches * len(chosen)).reshape(spec.branches, -1)
        return place.reshape(-1)


def within_budget(
    policy: TemporalDeltaCache, spec: PolicySpec, budget: int, order: tuple[int, ...]
) -> TemporalDeltaCache:
    """`policy` with a cache for as many layers as fit into `budget` bytes.

    `order` has the layers that skip most first, as the trace of a run without a budget tells.
    """
    each = delta_store.slot_bytes(policy.cache_format, (1, spec.tokens, spec.dim)) * spec.branches
    count = budget // each
    if count < 1:
        raise UserError(
            f"--cache-budget-gb: {budget / 1e9:.3g} GB hold no layer; one takes {each / 1e9:.3g} GB as "
            f"{policy.cache_format}"
        )
    return policy if count >= spec.layers else dataclasses.replace(policy, layers=tuple(sorted(order[:count])))
