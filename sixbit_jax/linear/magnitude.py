"""How uneven the input of a product is. In f32."""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class Magnitudes(NamedTuple):
    """Of every row of an input: what quantizers look at for their scales, and so get for nothing."""

    total: Float[Array, " rows"]
    largest: Float[Array, " rows"]

    def ratio(self, count: int) -> Float[Array, ""]:
        """The loudest value over the mean magnitude of so many values."""
        return self.largest.max() / (self.total.sum() / count)


def ratios(seen: Mapping[str, tuple[Magnitudes, int]]) -> dict[str, Float[Array, ""]]:
    """The `ratio` of several inputs that have equally many rows, with the number of values in each.

    All of them at once: on a GPU each by itself would be four small kernels.
    """
    found, counts = zip(*seen.values(), strict=True)
    total, largest = (jnp.stack(rows) for rows in zip(*found, strict=True))
    ratio = largest.max(1) / (total.sum(1) / jnp.asarray(counts, jnp.float32))
    return dict(zip(seen, ratio, strict=True))


def magnitudes(x: Float[Array, "... k"]) -> Magnitudes:
    magnitude = jnp.abs(x.astype(jnp.float32))
    return Magnitudes(magnitude.sum(-1).reshape(-1), magnitude.max(-1).reshape(-1))


def outlier_ratio(x: Float[Array, "... k"]) -> Float[Array, ""]:
    """The loudest value over the mean magnitude.

    >>> float(outlier_ratio(jnp.array([[1.0, -3.0], [2.0, 2.0]])))
    1.5
    """
    return magnitudes(x).ratio(x.size)
