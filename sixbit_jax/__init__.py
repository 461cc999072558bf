"""Video generation with Wan-style diffusion transformers in low precision, in JAX, on GPUs.

    from sixbit_jax import WanPipeline
    WanPipeline.load("assets/tiny-wan", "f32")("a red circle drifts to the left").save("circle.mp4")

Importing the package touches no device and nothing heavier than jax; the pipeline loads on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

# Eager, because these names are subpackages too: the last binding wins, and it has to be the function.
from sixbit_jax.attention import attention
from sixbit_jax.formats import (
    Int4Tensor,
    Int8Tensor,
    NVFP4Tensor,
    QuantizedWeight,
    dequantize,
    hadamard,
    quantize_int8,
    quantize_nvfp4,
)
from sixbit_jax.linear import linear
from sixbit_jax.quantize import quantize

if TYPE_CHECKING:
    from sixbit_jax.pipeline import Result, WanPipeline
    from sixbit_jax.settings import Settings

__version__ = "0.1.0"

_LATE = {
    "Result": "sixbit_jax.pipeline",
    "Settings": "sixbit_jax.settings",
    "WanPipeline": "sixbit_jax.pipeline",
}

__all__ = [
    "Int4Tensor",
    "Int8Tensor",
    "NVFP4Tensor",
    "QuantizedWeight",
    "Result",
    "Settings",
    "WanPipeline",
    "attention",
    "dequantize",
    "hadamard",
    "linear",
    "quantize",
    "quantize_int8",
    "quantize_nvfp4",
]


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LATE])
