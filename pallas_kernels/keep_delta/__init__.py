"""What a block added to its input: measured, kept for later steps, and the output moved to where the input lay."""

from pallas_kernels.keep_delta.api import Kept, keep_delta
from pallas_kernels.keep_delta.config import KeepDeltaConfig

__all__ = ["KeepDeltaConfig", "Kept", "keep_delta"]
