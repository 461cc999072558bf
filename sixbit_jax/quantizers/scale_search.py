"""NVFP4 with searched block scales: the same format and cost as min-max, a smaller error.

Min-max puts the largest value of every block at 6. E2M1 has nothing between 4 and 6, so a block is often better off
with its largest value at 4, or with that value clipped and the others finer. Scales are e4m3: a handful of neighbours
covers all choices that can win.
"""

import dataclasses

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from sixbit_jax.formats import (
    QuantizedWeight,
    dequantize,
    encode_nvfp4,
    nvfp4_block_scale,
    nvfp4_tensor_scale,
)
from sixbit_jax.quantizers.base import AbstractQuantizer, Weight, per_matrix
from sixbit_jax.quantizers.statistics import Statistics

# Scales may grow to 1.5 times those of min-max, which start at 448: the largest then starts at 256 (256 · 1.5 < 448).
_HEADROOM = 448 / 256
_BLOCK = 16
# The bytes of e4m3's smallest normal and of its largest value; between them a higher byte is a larger scale.
_SMALLEST_BYTE, _LARGEST_BYTE = 0x08, 0x7E


@dataclasses.dataclass(frozen=True)
class FourOverSix(AbstractQuantizer):
    """Two candidates a block: its largest value at 6 or at 4 (arXiv 2512.02010)."""

    def __call__(self, weight: Weight, statistics: Statistics | None = None) -> QuantizedWeight:
        return four_over_six(weight, statistics, self)


@dataclasses.dataclass(frozen=True)
class ScaleSearch(AbstractQuantizer):
    """All e4m3 scales from `below` steps under min-max's to `above` steps over it; eight steps are a factor of two."""

    below: int = 4
    above: int = 6

    def __post_init__(self) -> None:
        if self.below < 0 or self.above < 0:
            raise ValueError(f"scale_search: below={self.below} and above={self.above} count steps, from 0 up")

    def __call__(self, weight: Weight, statistics: Statistics | None = None) -> QuantizedWeight:
        return scale_search(weight, statistics, self)


@per_matrix(FourOverSix)
def four_over_six(
    weight: Float32[Array, "n k"], statistics: Statistics | None, options: FourOverSix
) -> QuantizedWeight:
    """Per block the better of two scales.

    >>> import jax.numpy as jnp
    >>> from sixbit_jax.formats import dequantize
    >>> dequantize(four_over_six(jnp.array([[4.0, 3.0, 2.0, 1.0] * 4])).weight)[0, :4].round(4).tolist()
    [4.0, 3.0, 2.0, 1.0]
    """
    tensor_scale = nvfp4_tensor_scale(weight) * _HEADROOM
    at_six, at_four = (nvfp4_block_scale(weight, tensor_scale, largest) for largest in (6.0, 4.0))
    return _best(weight, tensor_scale, jnp.stack([at_six, at_four]))


@per_matrix(ScaleSearch)
def scale_search(weight: Float32[Array, "n k"], statistics: Statistics | None, options: ScaleSearch) -> QuantizedWeight:
    """Per block the e4m3 scale that leaves the least squared error.

    >>> import jax
    >>> from sixbit_jax.formats import effective_weight
    >>> from sixbit_jax.quantizers import MinMax
    >>> w = jax.random.normal(jax.random.key(0), (8, 256))
    >>> error = lambda method: float(((effective_weight(method(w)) - w) ** 2).mean())
    >>> error(ScaleSearch()) < error(FourOverSix()) < error(MinMax("nvfp4"))
    True
    """
    tensor_scale = nvfp4_tensor_scale(weight) * _HEADROOM
    start = lax.bitcast_convert_type(nvfp4_block_scale(weight, tensor_scale), jnp.uint8).astype(jnp.int32)
    # Min-max first: among equals the first wins.
    steps = jnp.array(sorted(range(-options.below, options.above + 1), key=abs))
    neighbours = jnp.clip(start[None] + steps[:, None, None], _SMALLEST_BYTE, _LARGEST_BYTE).astype(jnp.uint8)
    return _best(weight, tensor_scale, lax.bitcast_convert_type(neighbours, jnp.float8_e4m3fn))


def _best(
    weight: Float32[Array, "n k"], tensor_scale: Float32[Array, ""], candidates: Float[Array, "c n g"]
) -> QuantizedWeight:
    """Encode with the candidate of the least squared error, block by block."""

    def compare(best: tuple[Array, Array], scale: Array) -> tuple[tuple[Array, Array], None]:
        error = _block_errors(weight, scale, tensor_scale)
        return (jnp.where(error < best[1], scale, best[0]), jnp.minimum(error, best[1])), None

    first = candidates[0], _block_errors(weight, candidates[0], tensor_scale)
    (scale, _), _ = lax.scan(compare, first, candidates[1:])
    return QuantizedWeight(encode_nvfp4(weight, scale, tensor_scale))


def _block_errors(
    weight: Float32[Array, "n k"], block_scale: Float[Array, "n g"], tensor_scale: Float32[Array, ""]
) -> Float32[Array, "n g"]:
    difference = dequantize(encode_nvfp4(weight, block_scale, tensor_scale)) - weight
    return jnp.sum(difference.reshape(*block_scale.shape, _BLOCK) ** 2, axis=-1)
