"""Muon: momentum whose matrices are made orthogonal, so that every direction of a weight learns at the same pace.

Next to Adam it takes fewer steps to the same loss, and its steps cost little more: the products below are those of
weights alone, without the batch.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

_MOMENTUM = 0.95
# Of the quintic iteration; they favour speed: singular values end between 0.7 and 1.2, which is near enough.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
# The root mean square of Adam's steps is about this, so that both take the same learning rate.
_STEP_SIZE = 0.2


class MuonState(NamedTuple):
    momentum: Any


def scale_by_muon() -> optax.GradientTransformation:
    """For matrices, possibly stacked: leaves of two axes or more. Nesterov momentum, orthogonal, sized like Adam's."""

    def update(gradients: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
        momentum = jax.tree.map(lambda m, g: _MOMENTUM * m + (1 - _MOMENTUM) * g, state.momentum, gradients)
        ahead = jax.tree.map(lambda m, g: _MOMENTUM * m + (1 - _MOMENTUM) * g, momentum, gradients)
        return jax.tree.map(_direction, ahead), MuonState(momentum)

    return optax.GradientTransformation(lambda params: MuonState(jax.tree.map(jnp.zeros_like, params)), update)


def orthogonalize(matrix: Float[Array, "*l n k"]) -> Float[Array, "*l n k"]:
    """Nearly U Vᵀ, where `matrix` = U S Vᵀ, by products alone.

    >>> import jax.numpy as jnp
    >>> bool(jnp.all(jnp.abs(orthogonalize(jnp.diag(jnp.array([4.0, 1.0]))) - jnp.eye(2)) < 0.35))
    True
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def _direction(momentum: Float[Array, "*l n k"]) -> Float[Array, "*l n k"]:
    return orthogonalize(momentum) * (_STEP_SIZE * max(momentum.shape[-2:]) ** 0.5)
