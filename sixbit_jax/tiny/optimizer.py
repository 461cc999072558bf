"""Muon or Adam with warm-up and cosine, clipped gradients, and a moving average of the weights, as one pure step.

The number of steps is an argument of the compiled program, so a run may decide on it while it warms up.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from sixbit_jax.shapes import Params
from sixbit_jax.tiny.muon import scale_by_muon

UNDECIDED = 2**30  # steps, while warming up; the rate of the warm-up does not depend on it


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    peak: float  # learning rate
    warmup: int = 200  # steps
    weight_decay: float = 0.01  # of matrices
    clip: float = 1.0  # length of the gradient
    ema: float = 0.999
    muon: bool = False  # for the weights of blocks; Adam for all else


# The fields are not typed as arrays: JAX also builds this class with placeholders for leaves.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes; all f32 except the counters."""

    step: Any
    params: Any
    ema: Any
    moments: Any


def start(config: OptimizerConfig, params: Params) -> TrainState:
    # The average starts as a copy: the program takes over the memory of its arguments, each buffer once.
    return TrainState(jnp.int32(0), params, jax.tree.map(jnp.copy, params), _transform(config).init(params))


def advance(config: OptimizerConfig, state: TrainState, gradients: Params, total: Int[Array, ""]) -> TrainState:
    """One step of `total`."""
    updates, moments = _transform(config).update(gradients, state.moments, state.params)
    rate = learning_rate(config, state.step, total)
    params = jax.tree.map(lambda p, update: p - rate * update, state.params, updates)
    keep = _ema_decay(config, state.step)
    ema = jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, state.ema, params)
    return TrainState(state.step + 1, params, ema, moments)


def learning_rate(config: OptimizerConfig, step: Int[Array, ""], total: Int[Array, ""]) -> Float[Array, ""]:
    """Up in a line, down to zero in half a cosine."""
    now, end = step.astype(jnp.float32), total.astype(jnp.float32)
    done = jnp.clip((now - config.warmup) / jnp.maximum(end - config.warmup, 1.0), 0.0, 1.0)
    return config.peak * jnp.minimum((now + 1) / config.warmup, 1.0) * 0.5 * (1 + jnp.cos(jnp.pi * done))


def _ema_decay(config: OptimizerConfig, step: Int[Array, ""]) -> Float[Array, ""]:
    """Shorter at the start, where the average would otherwise hold on to the random weights."""
    now = step.astype(jnp.float32)
    return jnp.minimum(config.ema, (1 + now) / (10 + now))


def _transform(config: OptimizerConfig) -> optax.GradientTransformation:
    """The direction of a step; its length is `learning_rate`."""
    adam = optax.scale_by_adam(b1=0.9, b2=0.99)
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.partition({"muon": scale_by_muon(), "adam": adam}, _by_block) if config.muon else adam,
        optax.add_decayed_weights(config.weight_decay, lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
    )


def _by_block(params: Params) -> Any:
    """Which optimizer moves which leaf: Muon the matrices between a block's input and output."""

    def label(path: tuple[Any, ...], leaf: Array) -> str:
        names = [entry.key for entry in path]
        return "muon" if "blocks" in names and names[-1] == "weight" and leaf.ndim > 2 else "adam"

    return jax.tree_util.tree_map_with_path(label, params)
