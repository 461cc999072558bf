"""SVDQuant (arXiv 2411.05007): a low-rank branch in 16 bits takes the largest directions; the residual is quantized.

    x Wᵀ ≈ (x downᵀ) upᵀ + Q(x) Q(W - up down)ᵀ

The paper smooths first, so that the branch absorbs what smoothing moved into the weight:
`SmoothQuant(weights=SVDQuant())`. Alone the method needs no data.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, BFloat16, Float32

from sixbit_jax.formats import QuantizedWeight
from sixbit_jax.quantizers.base import AbstractQuantizer, Weight, add_part, per_matrix
from sixbit_jax.quantizers.minmax import MinMax
from sixbit_jax.quantizers.statistics import Statistics

# More directions than asked for, and rounds of iteration: with both the subspace captures what an exact SVD does.
_OVERSAMPLE = 16
_ROUNDS = 6


@dataclasses.dataclass(frozen=True)
class SVDQuant(AbstractQuantizer):
    """`rank` of the branch. `weights`: how the residual is quantized."""

    rank: int = 32
    weights: AbstractQuantizer = MinMax()

    def __call__(self, weight: Weight, statistics: Statistics | None = None) -> QuantizedWeight:
        return svdquant(weight, statistics, self)


@per_matrix(SVDQuant)
def svdquant(weight: Float32[Array, "n k"], statistics: Statistics | None, options: SVDQuant) -> QuantizedWeight:
    """Split off the leading directions, quantize the rest.

    >>> import jax.numpy as jnp
    >>> down, up = svdquant(jnp.eye(64), None, SVDQuant(rank=4)).low_rank
    >>> down.shape, up.shape
    ((4, 64), (64, 4))
    """
    if not 0 < options.rank <= min(weight.shape):
        raise ValueError(f"svdquant: rank={options.rank} does not fit a weight {weight.shape}")
    down, up = leading_directions(weight, options.rank)
    # The residual is taken from the rounded factors, so that their rounding is made good too.
    branch = _matmul(up.astype(jnp.float32), down.astype(jnp.float32))
    return add_part("svdquant", options.weights(weight - branch, statistics), low_rank=(down, up))


def leading_directions(
    weight: Float32[Array, "n k"], rank: int
) -> tuple[BFloat16[Array, "rank k"], BFloat16[Array, "n rank"]]:
    """`(down, up)` with `up · down` the best approximation of that rank, by subspace iteration.

    A full SVD of a 13824 × 5120 weight takes minutes on a GPU; this takes products with a few dozen columns.
    """
    width = min(rank + _OVERSAMPLE, *weight.shape)
    sketch = jax.random.normal(jax.random.key(0), (weight.shape[1], width))
    basis = jnp.linalg.qr(_matmul(weight, sketch))[0]

    def iterate(_: Array, basis: Array) -> Array:
        across = jnp.linalg.qr(_matmul(weight.T, basis))[0]
        return jnp.linalg.qr(_matmul(weight, across))[0]

    basis = lax.fori_loop(0, _ROUNDS, iterate, basis)
    inside = _matmul(basis.T, weight)
    _, vectors = jnp.linalg.eigh(_matmul(inside, inside.T))  # ascending
    leading = vectors[:, ::-1][:, :rank]
    return _matmul(leading.T, inside).astype(jnp.bfloat16), _matmul(basis, leading).astype(jnp.bfloat16)


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
