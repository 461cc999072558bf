"""What calibration saw of a linear's input."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from sixbit_jax.formats import hadamard


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Statistics:
    """Facts per input channel, with the batch axes of the weight in front. A method asks for those that it needs."""

    absmax: Any = None  # f32 (…, k): the largest magnitude
    hessian: Any = None  # f32 (…, k, k): the mean of x xᵀ


def observe(x: Float[Array, "... k"], *, hessian: bool = False) -> Statistics:
    """The statistics of activations, over all their leading axes.

    >>> import jax.numpy as jnp
    >>> observe(jnp.array([[1.0, -3.0], [-2.0, 0.0]])).absmax.tolist()
    [2.0, 3.0]
    """
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    second = jnp.matmul(rows.T, rows, precision=lax.Precision.HIGHEST) / rows.shape[0] if hessian else None
    return Statistics(jnp.max(jnp.abs(rows), axis=0), second)


def smoothed(statistics: Statistics | None, smooth: Float32[Array, " k"]) -> Statistics | None:
    """The statistics of x / smooth."""
    if statistics is None:
        return None
    absmax, hessian = statistics.absmax, statistics.hessian
    return Statistics(
        None if absmax is None else absmax / smooth,
        None if hessian is None else hessian / (smooth[:, None] * smooth[None]),
    )


def rotated(statistics: Statistics | None, block: int) -> Statistics | None:
    """The statistics of hadamard(x, block). What a rotation does to the largest magnitudes is not known."""
    if statistics is None or statistics.hessian is None:
        return None
    return Statistics(hessian=hadamard(hadamard(statistics.hessian, block).T, block))
