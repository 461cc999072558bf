"""ViDiT-Q (arXiv 2406.02540): static-dynamic channel balancing.

The part of the imbalance between channels that all steps of the denoising share is calibrated and smoothed away; the
part that changes from step to step is spread by a rotation. Its published smoothing leans on the weight: alpha 0.11.
"""

import dataclasses

from jaxtyping import Array, Float32

from sixbit_jax.formats import QuantizedWeight
from sixbit_jax.quantizers.base import AbstractQuantizer, Weight, per_matrix
from sixbit_jax.quantizers.minmax import MinMax
from sixbit_jax.quantizers.quarot import QuaRot
from sixbit_jax.quantizers.smoothquant import SmoothQuant
from sixbit_jax.quantizers.statistics import Statistics


@dataclasses.dataclass(frozen=True)
class ViDiTQ(AbstractQuantizer):
    """`alpha`: as in SmoothQuant. `block`: of the rotation. `weights`: how the balanced weight is quantized."""

    alpha: float = 0.11
    block: int = 128
    weights: AbstractQuantizer = MinMax()

    def __call__(self, weight: Weight, statistics: Statistics | None = None) -> QuantizedWeight:
        return viditq(weight, statistics, self)


@per_matrix(ViDiTQ)
def viditq(weight: Float32[Array, "n k"], statistics: Statistics | None, options: ViDiTQ) -> QuantizedWeight:
    """Smooth, rotate, quantize. Needs `statistics.absmax`.

    >>> import jax.numpy as jnp
    >>> from sixbit_jax.quantizers import Statistics
    >>> w = viditq(jnp.ones((2, 128)), Statistics(absmax=jnp.ones(128)))
    >>> w.smooth.shape, w.rotated
    ((128,), 128)
    """
    return SmoothQuant(options.alpha, QuaRot(options.block, options.weights))(weight, statistics)
