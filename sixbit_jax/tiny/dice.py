"""Random choices from one key.

All numbers are drawn at once: a call of the random generator for every choice would compile ten times longer.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key


class Dice:
    """Uniform numbers, handed out in order."""

    def __init__(self, key: Key[Array, ""], count: int):
        self._numbers = jax.random.uniform(key, (count,))
        self._used = 0

    def uniform(self, *shape: int, low: float | Array = 0.0, high: float | Array = 1.0) -> Float[Array, "..."]:
        """Numbers in [low, high)."""
        start, self._used = self._used, self._used + int(np.prod(shape))
        if self._used > self._numbers.size:
            raise ValueError(f"{self._used} random numbers wanted, {self._numbers.size} drawn")
        return low + (high - low) * self._numbers[start : self._used].reshape(shape)

    def chance(self, share: float | Array) -> Array:
        """True as often as `share` says."""
        return self.uniform() < share

    def below(self, count: Int[Array, "..."]) -> Int[Array, "..."]:
        """Whole numbers from 0 up to, not including, each count."""
        return jnp.floor(self.uniform(*count.shape) * count.astype(jnp.float32)).astype(jnp.int32)

    def pick(self, cumulative: Float[Array, "... n"]) -> Int[Array, "..."]:
        """Indices into the last axis, as likely as the steps of `cumulative` are high: never one without a step."""
        total = cumulative[..., -1]
        level = self.uniform(*total.shape) * total
        return (cumulative <= level[..., None]).sum(-1, dtype=jnp.int32)


def accumulate(weights: np.ndarray) -> Float[np.ndarray, "..."]:
    """Running sums over the last axis for `pick`. Worked out here, since a parallel sum may turn zero steps into
    steps of a rounding error."""
    return np.cumsum(weights, -1, dtype=np.float64).astype(np.float32)
