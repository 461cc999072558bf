"""Temporal Delta Cache of 6Bit-Diffusion: a block whose delta (output - input) is stable adds the last one again.

    change     relative L1 difference of a block's last two computed deltas
    error      the changes of all reuses since the last computation, added up: what reuse is assumed to have cost
    skip       if error + change < tau, not too often in a row, and neither at the start nor at the end of the run

While a block is skipped its change cannot be measured; the last one stands for every reuse. Blocks and branches decide
apart, as in the paper, or together: a step is skipped whole where most blocks want to be skipped by every branch.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sixbit_jax.errors import UserError, nearest
from sixbit_jax.policies.base import PolicySpec, StepInfo
from sixbit_jax.policies.delta_reuse import AbstractDeltaReuse

TOGETHER = ("block", "step")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeltaState:
    """What one branch remembers of each layer."""

    change: Any  # f32 (l): of the last two computed deltas
    error: Any  # f32 (l): what the reuses since then are assumed to have cost
    skips: Any  # i32 (l): in a row
    computed: Any  # i32 (l): how often so far


@dataclasses.dataclass(frozen=True)
class TemporalDeltaCache(AbstractDeltaReuse):
    """`tau`: the error at which a block is computed again. 0 computes always; the larger, the more is skipped.

    None is what calibration or the user still has to say. The first `warmup` and the last `cooldown` steps compute
    every block. `together`: what is skipped at once, each "block" of a branch by itself or a whole "step". Where some
    blocks are skipped and others run on what those left, both kinds of delta are wrong for the next step.
    """

    tau: float | Float[Array, ""] | None = None
    max_skips: int = 2
    warmup: int = 2
    cooldown: int = 1
    together: str = "block"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.together not in TOGETHER:
            hint = nearest(self.together, TOGETHER)
            raise UserError(f'TemporalDeltaCache: unknown together "{self.together}"; {hint}')
        for name in ("tau", "max_skips", "warmup", "cooldown"):
            value = getattr(self, name)
            # A search passes tau to its program as an argument.
            if not (value is None or isinstance(value, jax.Array) or value >= 0):
                raise UserError(f"TemporalDeltaCache: {name} is {value}, needs at least 0")

    @property
    def missing(self) -> tuple[str, ...]:
        return ("tau",) if self.tau is None else ()

    @property
    def whole_steps(self) -> bool:
        return self.together == "step"

    @property
    def least_steps(self) -> int:
        """Two deltas have to be known before a change is."""
        return max(self.warmup, 2) + 1 + self.cooldown

    def init(self, spec: PolicySpec) -> DeltaState:
        self.refuse_missing()
        zeros = jnp.zeros((spec.layers,), jnp.float32)
        return DeltaState(zeros, zeros, zeros.astype(jnp.int32), zeros.astype(jnp.int32))

    def decide(self, spec: PolicySpec, state: DeltaState, info: StepInfo) -> Bool[Array, " l"]:
        in_time = (info.step >= self.warmup) & (info.step <= info.last - self.cooldown)
        stable = state.error + state.change < self.tau
        cached = jnp.asarray(self.cached(spec))
        return in_time & stable & cached & (state.computed >= 2) & (state.skips < self.max_skips)

    def agree(self, spec: PolicySpec, skip: Bool[Array, "e l"]) -> Bool[Array, "e l"]:
        if self.together == "block":
            return skip
        cached = self.cached(spec)
        most = 2 * skip.all(axis=0).sum() > cached.sum()
        return jnp.broadcast_to((most & cached)[None], skip.shape)

    def update(
        self, spec: PolicySpec, state: DeltaState, info: StepInfo, skipped: Bool[Array, " l"], observed: Any
    ) -> DeltaState:
        return DeltaState(
            change=jnp.where(skipped, state.change, observed["change"]),
            error=jnp.where(skipped, state.error + state.change, 0.0),
            skips=jnp.where(skipped, state.skips + 1, 0),
            computed=jnp.where(skipped, state.computed, state.computed + 1),
        )

    def recall(self, state: DeltaState) -> dict[str, Any]:
        return {"error": state.error}
