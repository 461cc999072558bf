"""How a weight becomes a tensor of a format, one method a file: `(weight, statistics, options) -> QuantizedWeight`.

A method's options are callable, so they are the value to store in a recipe and to nest in another method:

    QuaRot(weights=GPTQ(weights=ScaleSearch()))(weight, statistics)

Weights are (n, k), or (…, n, k) with layers stacked in front, or the `ShapeDtypeStruct` of either.
"""

from sixbit_jax.quantizers.arq import ARQ, arq
from sixbit_jax.quantizers.base import AbstractQuantizer
from sixbit_jax.quantizers.bgr import BGR, bgr
from sixbit_jax.quantizers.gptq import GPTQ, gptq
from sixbit_jax.quantizers.minmax import MinMax, minmax
from sixbit_jax.quantizers.quarot import QuaRot, quarot
from sixbit_jax.quantizers.scale_search import FourOverSix, ScaleSearch, four_over_six, scale_search
from sixbit_jax.quantizers.smoothquant import SmoothQuant, smoothquant
from sixbit_jax.quantizers.statistics import Statistics, observe
from sixbit_jax.quantizers.svdquant import SVDQuant, svdquant
from sixbit_jax.quantizers.viditq import ViDiTQ, viditq

__all__ = [
    "ARQ",
    "BGR",
    "GPTQ",
    "AbstractQuantizer",
    "FourOverSix",
    "MinMax",
    "QuaRot",
    "SVDQuant",
    "ScaleSearch",
    "SmoothQuant",
    "Statistics",
    "ViDiTQ",
    "arq",
    "bgr",
    "four_over_six",
    "gptq",
    "minmax",
    "observe",
    "quarot",
    "scale_search",
    "smoothquant",
    "svdquant",
    "viditq",
]
