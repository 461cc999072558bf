"""Activations to INT8, with what comes before: activation function, rotation, and the statistics policies ask for."""

from pallas_kernels.quantize_rows.api import QuantizedRows, quantize_rows
from pallas_kernels.quantize_rows.config import QuantizeRowsConfig

__all__ = ["QuantizeRowsConfig", "QuantizedRows", "quantize_rows"]
