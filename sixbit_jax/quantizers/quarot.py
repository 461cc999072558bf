"""QuaRot-style rotation (arXiv 2404.00456): a Hadamard transform of blocks of k spreads outliers over their block.

In a diffusion transformer the modulation sits between a norm and its linear, so the rotation cannot be folded into the
layer before: it runs on the activations, in front of the product.
"""

import dataclasses

from jaxtyping import Array, Float32

from sixbit_jax.formats import QuantizedWeight, hadamard
from sixbit_jax.quantizers.base import AbstractQuantizer, Weight, add_part, per_matrix
from sixbit_jax.quantizers.minmax import MinMax
from sixbit_jax.quantizers.statistics import Statistics, rotated


@dataclasses.dataclass(frozen=True)
class QuaRot(AbstractQuantizer):
    """`block`: how many channels are mixed, a power of two. `weights`: how the rotated weight is quantized."""

    block: int = 128
    weights: AbstractQuantizer = MinMax()

    def __call__(self, weight: Weight, statistics: Statistics | None = None) -> QuantizedWeight:
        return quarot(weight, statistics, self)


@per_matrix(QuaRot)
def quarot(weight: Float32[Array, "n k"], statistics: Statistics | None, options: QuaRot) -> QuantizedWeight:
    """Rotate, then quantize.

    >>> import jax.numpy as jnp
    >>> quarot(jnp.ones((2, 256))).rotated
    128
    """
    inner = options.weights(hadamard(weight, options.block), rotated(statistics, options.block))
    return add_part("quarot", inner, rotated=options.block)
