"""Products with NVFP4 weights: expanded for many tokens, decoded in registers for few."""

from pallas_kernels.nvfp4_matmul.api import nvfp4_matmul, w4a4_matmul
from pallas_kernels.nvfp4_matmul.config import FusedConfig
from pallas_kernels.nvfp4_matmul.expand import expand_to_bf16, expand_to_int8

__all__ = ["FusedConfig", "expand_to_bf16", "expand_to_int8", "nvfp4_matmul", "w4a4_matmul"]
