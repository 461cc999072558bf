"""INT8 × INT8 matmul with the scales, and whatever follows, in its epilogue."""

from pallas_kernels.int8_matmul.api import int8_matmul
from pallas_kernels.int8_matmul.config import Int8MatmulConfig

__all__ = ["Int8MatmulConfig", "int8_matmul"]
