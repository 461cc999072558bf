"""Activations to INT8 or NVFP4, with what comes before (norm, activation function, rotation) and their statistics."""

from pallas_kernels.quantize_rows.api import QuantizedRows, quantize_rows
from pallas_kernels.quantize_rows.config import QuantizeRowsConfig

__all__ = ["QuantizeRowsConfig", "QuantizedRows", "quantize_rows"]
