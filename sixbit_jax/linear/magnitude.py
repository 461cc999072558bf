"""How uneven the input of a product is. In f32."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def outlier_ratio(x: Float[Array, "... k"]) -> Float[Array, ""]:
    """The loudest value over the mean magnitude.

    >>> float(outlier_ratio(jnp.array([[1.0, -3.0], [2.0, 2.0]])))
    1.5
    """
    magnitude = jnp.abs(x.astype(jnp.float32))
    # Row by row first, as quantizers look for their scales: then it is the same pass over x.
    return ratio(magnitude.sum(-1), magnitude.max(-1), x.size)


def ratio(total: Float[Array, "..."], largest: Float[Array, "..."], count: int) -> Float[Array, ""]:
    """Of sums and maxima of magnitudes, whatever they are over, and how many values there are."""
    return largest.max() / (total.sum() / count)
