"""What a linear may do to its input first: GELU, or a LayerNorm. Computed in f32, rounded once.

A kernel that reads the input to round it does this in the same pass; for other implementations `applied` does.
"""

import dataclasses
import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sixbit_jax.models.norms import layer_norm


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Gelu:
    """Its tanh form."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerNorm:
    """norm(x) · factor + offset: the weights of a norm, or 1 + scale and shift of a modulation."""

    factor: Any  # f32 (k,), or (b, 1, k) to x (b, s, k)
    offset: Any
    eps: float = dataclasses.field(default=1e-6, metadata={"static": True})


Before: TypeAlias = Gelu | LayerNorm


def gelu_tanh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The tanh form of GELU, in f32.

    (1 + tanh u) / 2 is sigmoid(2u), which XLA computes with one exponential. Its tanh is a long polynomial that made
    this pass twice as slow as the memory it moves (0.50 ms for 32760 x 8960 on an H200, where 0.28 would do).
    """
    x = x.astype(jnp.float32)
    return x * jax.nn.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))


def applied(before: Before | None, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x after it, in its own dtype; None leaves it as it is."""
    if before is None:
        return x
    if isinstance(before, Gelu):
        return gelu_tanh(x).astype(x.dtype)
    return layer_norm(x, before.eps, before.factor, before.offset).astype(x.dtype)


def check_before(before: Any, x: Any) -> None:
    """Types and shapes only."""
    if before is None or isinstance(before, Gelu):
        return
    if not isinstance(before, LayerNorm):
        raise TypeError(f"linear: before is {before!r}, expected Gelu(), a LayerNorm or None")
    for name in ("factor", "offset"):
        shape = jnp.shape(getattr(before, name))
        if shape[-1:] != x.shape[-1:] or len(shape) not in (1, x.ndim):
            raise ValueError(f"linear: before.{name} has shape {shape}, which does not go with x {tuple(x.shape)}")
