"""What MagCache and TeaCache are calibrated on: how the residual of the whole stack changes from step to step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.polynomial import Polynomial

from sixbit_jax.models import wan
from sixbit_jax.pipeline import WanPipeline
from sixbit_jax.policies import AbstractCachePolicy, FixedPrecision, PolicySpec, StepInfo
from sixbit_jax.settings import Settings
from sixbit_jax.shapes import Compute

_DEGREE = 4  # TeaCache's


@dataclasses.dataclass(frozen=True)
class WatchStack(AbstractCachePolicy):
    """Computes everything and keeps, of each branch, what entered the stack and what the stack last added to it."""

    def init(self, spec: PolicySpec) -> tuple[()]:
        return ()

    def allocate(self, spec: PolicySpec) -> Any:
        shape = (spec.branches, 1, spec.tokens, spec.dim)
        # The number of layers travels along: `run` is told the slot alone.
        return {"entered": jnp.zeros(shape), "residual": jnp.zeros(shape), "layers": jnp.int32(spec.layers)}

    def decide(self, spec: PolicySpec, state: Any, info: StepInfo) -> Array:
        return jnp.zeros((spec.layers,), bool)

    def run(self, compute: Compute, x: Array, memory: Any, slot: Array, skip: Array) -> tuple[Array, Any, Any]:
        y, notes = compute(x)
        branch, layer = slot // memory["layers"], slot % memory["layers"]
        first, last = layer == 0, layer == memory["layers"] - 1
        entered = jnp.where(first, x.astype(jnp.float32), memory["entered"][branch])
        before, now = memory["residual"][branch], y.astype(jnp.float32) - entered
        length = lambda r: jnp.sqrt(jnp.square(r).sum(-1))
        tiny = jnp.finfo(jnp.float32).tiny
        seen = {
            "ratio": (length(now) / jnp.maximum(length(before), tiny)).mean(),
            "moved": jnp.abs(now - before).sum() / jnp.maximum(jnp.abs(before).sum(), tiny),
        }
        memory = memory | {
            "entered": memory["entered"].at[branch].set(entered),
            "residual": memory["residual"].at[branch].set(jnp.where(last, now, before)),
        }
        return y, memory, notes | seen

    def update(self, spec: PolicySpec, state: Any, info: StepInfo, skipped: Array, observed: Any) -> Any:
        return state


@dataclasses.dataclass(frozen=True)
class Calibration:
    """`ratios`: MagCache's. `changes`, `coefficients`: TeaCache's indicator and the polynomial that rescales it."""

    ratios: Float[np.ndarray, " i"]
    changes: Float[np.ndarray, " i"]
    coefficients: Float[np.ndarray, " c"]


def calibrate(dense: WanPipeline, settings: Settings) -> Calibration:
    """One run of the dense model from a prompt, both branches averaged."""
    recipe = dataclasses.replace(dense.recipe, precision=FixedPrecision(), cache=WatchStack())
    observed = WanPipeline(dense.components, recipe).traced(settings).observed
    ratios, moved = (observed[name][:, :, -1].mean(1) for name in ("ratio", "moved"))
    config, params = dense.components.transformer_configs[0], dense.components.experts[0]
    embed = jax.vmap(lambda timestep: wan.embed_time(params, config, timestep[None])[0][0])
    times = np.asarray(embed(dense.infos(settings).timestep))
    changes = np.zeros(len(times))
    changes[1:] = np.abs(np.diff(times, axis=0)).sum(-1) / np.abs(times[:-1]).sum(-1)
    fitted = Polynomial.fit(changes[1:], moved[1:], min(_DEGREE, len(changes) - 2))
    return Calibration(ratios, changes, fitted.convert().coef[::-1])
