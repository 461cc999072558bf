"""What a linear may do with its product: add it to a residual, through a gate or not.

A kernel that has the product in registers adds it there, in f32; for other implementations `added` does.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Added:
    """residual + gate · y"""

    residual: Any  # (..., n), in y's dtype
    gate: Any = None  # f32 (n,), or (b, 1, n) to a residual (b, s, n)


def added(after: Added | None, y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """y, already rounded to its dtype, through the gate and on the residual in f32, and rounded again."""
    if after is None:
        return y
    if after.gate is None:
        return after.residual + y
    gated = y.astype(jnp.float32) * jnp.broadcast_to(after.gate, y.shape)
    return (after.residual.astype(jnp.float32) + gated).astype(y.dtype)


def check_after(after: Any, x: Any, w: Any) -> None:
    """Types and shapes only."""
    if after is None:
        return
    if not isinstance(after, Added):
        raise TypeError(f"linear: after is {after!r}, expected an Added or None")
    expected, shape = (*x.shape[:-1], w.shape[0]), jnp.shape(after.residual)
    if shape != expected or after.residual.dtype != x.dtype:
        raise ValueError(
            f"linear: after.residual is {after.residual.dtype} {shape}, added to y {expected} it must be {x.dtype}"
        )
    gate = expected[-1:] if after.gate is None else jnp.shape(after.gate)
    if gate[-1:] != expected[-1:] or len(gate) not in (1, len(expected)):
        raise ValueError(f"linear: after.gate has shape {gate}, which does not go with y {expected}")
