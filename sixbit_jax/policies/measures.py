"""What policies measure of activations. All in f32, all scalars."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from sixbit_jax.linear.magnitude import outlier_ratio


def relative_change(x: Float[Array, "b s d"], y: Float[Array, "b s d"]) -> Float[Array, ""]:
    """Γ of 6Bit-Diffusion: the L1 size of what a block adds, relative to its input."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.abs(y - x).sum() / jnp.abs(x).sum()


def note_outlier_ratio(group: str, x: Float[Array, "b s k"], p: Any) -> Float[Array, ""]:
    """As a model's observer."""
    return outlier_ratio(x)
