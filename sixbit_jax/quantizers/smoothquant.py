"""SmoothQuant (arXiv 2211.10438): move the difficulty of the activations' outlier channels into the weight.

x Wᵀ = (x / s) (W s)ᵀ        s = amax(x)^alpha / amax(W)^(1 - alpha), per input channel
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float32

from sixbit_jax.formats import QuantizedWeight
from sixbit_jax.quantizers.base import AbstractQuantizer, Weight, add_part, per_matrix
from sixbit_jax.quantizers.minmax import MinMax
from sixbit_jax.quantizers.statistics import Statistics, smoothed

# Channels that are silent in the calibration set would otherwise be scaled by zero or by infinity.
_SMALLEST = 1e-5


@dataclasses.dataclass(frozen=True)
class SmoothQuant(AbstractQuantizer):
    """`alpha`: the share of the difficulty that moves, 0 to 1. `weights`: how the smoothed weight is quantized."""

    alpha: float = 0.5
    weights: AbstractQuantizer = MinMax()

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"smoothquant: alpha={self.alpha} must lie between 0 and 1")

    def __call__(self, weight: Weight, statistics: Statistics | None = None) -> QuantizedWeight:
        return smoothquant(weight, statistics, self)


@per_matrix(SmoothQuant)
def smoothquant(weight: Float32[Array, "n k"], statistics: Statistics | None, options: SmoothQuant) -> QuantizedWeight:
    """Balance the channels, then quantize. Needs `statistics.absmax`.

    >>> import jax.numpy as jnp
    >>> from sixbit_jax.quantizers import Statistics
    >>> smoothquant(jnp.ones((2, 16)), Statistics(absmax=jnp.full(16, 4.0))).smooth[0]
    Array(2., dtype=float32)
    """
    if statistics is None or statistics.absmax is None:
        hint = "a rotation goes inside it" if statistics else "calibrate first, or take a data-free method"
        raise ValueError(f"smoothquant: needs statistics.absmax; {hint}")
    activation = jnp.maximum(statistics.absmax, _SMALLEST)
    smooth = activation**options.alpha / jnp.maximum(jnp.max(jnp.abs(weight), axis=0), _SMALLEST) ** (1 - options.alpha)
    inner = options.weights(weight * smooth[None], smoothed(statistics, smooth))
    return add_part("smoothquant", inner, smooth=smooth)
