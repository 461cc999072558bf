"""Predicted precision of 6Bit-Diffusion: four bits where a block is expected to bear them, eight elsewhere.

    predicted error of a linear group = slope × Γ + offset       Γ: the block's relative change at the step before
    route = low (NVFP4) up to the threshold, high (INT8) above it

Without a calibration (no slope and offset) the threshold is one on Γ itself.

Γ is unknown at the first step and stale when the block was skipped at the last one; then the route is high. Purified
Delta Refresh: where a delta is computed to be reused, groups with loud outliers run in full precision, since what is
wrong with a cached delta is added again at every reuse.
"""

import dataclasses
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sixbit_jax.errors import UserError, nearest
from sixbit_jax.policies.base import PolicySpec, StepInfo
from sixbit_jax.policies.precision import AbstractPrecisionPolicy
from sixbit_jax.routes import Route

# One row a layer, one number a linear group, in the order of the model's groups.
Table: TypeAlias = tuple[tuple[float, ...], ...]

_LOW, _HIGH, _FULL = 0, 1, 2
# Which computations of a block count as a refresh of its delta. The paper can be read in both ways.
REFRESHES = ("after reuse", "always", "never")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PredictorState:
    """What one branch knows of each layer from its last computation."""

    gamma: Any  # f32 (l)
    ratio: Any  # f32 (l, g): of each group's input, max over mean
    fresh: Any  # bool (l): computed at the step before


@dataclasses.dataclass(frozen=True)
class PredictedPrecision(AbstractPrecisionPolicy):
    """`slope`, `offset` and the threshold come from calibration (see `sixbit_jax.presets`): they hold for one model and
    one recipe. None is what is still to come; without a threshold the policy does not run.

    `purify`: which computations are a refresh. `outlier_ratio`: above it a refresh runs in full precision.
    """

    slope: Table | None = None
    offset: Table | None = None
    error_threshold: float | Float[Array, ""] | None = None
    purify: str = "after reuse"
    outlier_ratio: float = 25.0
    low: Route = Route("nvfp4")
    high: Route = Route("int8")
    full: Route = Route(None)

    def __post_init__(self) -> None:
        if self.purify not in REFRESHES:
            raise UserError(f'PredictedPrecision: unknown purify "{self.purify}"; {nearest(self.purify, REFRESHES)}')
        shapes = {table if table is None else tuple(map(len, table)) for table in (self.slope, self.offset)}
        if len(shapes) != 1 or len(set(shapes.pop() or (0,))) != 1:
            raise UserError("PredictedPrecision: slope and offset need a number for every layer and linear group")

    @property
    def routes(self) -> tuple[Route, ...]:
        return (self.low, self.high) if self.purify == "never" else (self.low, self.high, self.full)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("gamma",) if self.purify == "never" else ("gamma", "inputs")

    @property
    def missing(self) -> tuple[str, ...]:
        return ("error_threshold",) if self.error_threshold is None else ()

    def init(self, spec: PolicySpec) -> PredictorState:
        self.refuse_missing()
        found = (spec.layers, len(spec.groups)) if self.slope is None else (len(self.slope), len(self.slope[0]))
        if found != (spec.layers, len(spec.groups)):
            raise UserError(
                f"PredictedPrecision: calibrated for {found[0]} layers and {found[1]} linear groups, this model has "
                f"{spec.layers} and {len(spec.groups)}"
            )
        layers, groups = jnp.zeros((spec.layers,)), jnp.zeros((spec.layers, len(spec.groups)))
        return PredictorState(layers, groups, layers > 0)

    def decide(
        self, spec: PolicySpec, state: PredictorState, info: StepInfo, skip: Bool[Array, " l"]
    ) -> Int[Array, "l g"]:
        fresh = state.fresh[:, None]
        predicted = jnp.broadcast_to(self.predict(state.gamma), state.ratio.shape)
        route = jnp.where((predicted <= jnp.asarray(self.error_threshold, jnp.float32)) & fresh, _LOW, _HIGH)
        refresh = {"never": False, "always": info.step > 0, "after reuse": (info.step > 0) & ~fresh}[self.purify]
        return jnp.where(refresh & (state.ratio > self.outlier_ratio), _FULL, route)

    def predict(self, gamma: Float[Array, " l"]) -> Float[Array, "l _"]:
        """The relative error that each group would have in the low route; without a calibration Γ stands for it."""
        if self.slope is None:
            return gamma[:, None]
        return jnp.asarray(self.slope) * gamma[:, None] + jnp.asarray(self.offset)

    def update(
        self, spec: PolicySpec, state: PredictorState, info: StepInfo, skipped: Bool[Array, " l"], observed: Any
    ) -> PredictorState:
        ratio = state.ratio
        if "inputs" in self.needs:
            seen = jnp.stack([observed["inputs"][group] for group in spec.groups], axis=-1)
            ratio = jnp.where(skipped[:, None], ratio, seen)
        return PredictorState(jnp.where(skipped, state.gamma, observed["gamma"]), ratio, ~skipped)
