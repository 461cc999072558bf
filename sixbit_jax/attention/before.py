"""What happens to queries and keys before attention: an RMS norm over all heads, and a rotary position embedding.

An implementation that reads q and k in its own kernel does both there; for the others `prepared` does.
"""

from typing import NamedTuple

from jaxtyping import Array, Float

from sixbit_jax.models.norms import rms_norm
from sixbit_jax.models.rope import rotate


class Before(NamedTuple):
    """Every part is optional: cross-attention's keys come finished, and have no positions."""

    q_norm: Float[Array, " d"] | None = None  # factors, d = a·c
    k_norm: Float[Array, " d"] | None = None
    rope: tuple[Float[Array, "s c"], Float[Array, "s c"]] | None = None  # as `rope_table` has them
    eps: float = 1e-6


NOTHING = Before()


def prepared(
    q: Float[Array, "b q a c"], k: Float[Array, "b k a c"], before: Before
) -> tuple[Float[Array, "b q a c"], Float[Array, "b k a c"]]:
    """Normed and rotated in f32, rounded once.

    >>> import jax.numpy as jnp
    >>> q = jnp.full((1, 6, 2, 8), 3.0)
    >>> prepared(q, q, Before(q_norm=jnp.ones(16)))[0][0, 0, 0, 0].round(3).item()
    1.0
    """
    return _finished(q, before.q_norm, before), _finished(k, before.k_norm, before)


def _finished(x: Float[Array, "b s a c"], norm: Float[Array, " d"] | None, before: Before) -> Float[Array, "b s a c"]:
    y = x
    if norm is not None:
        y = rms_norm(x.reshape(*x.shape[:2], -1), before.eps, norm).reshape(x.shape)
    if before.rope is not None:
        y = rotate(y, *before.rope)
    return y.astype(x.dtype)
