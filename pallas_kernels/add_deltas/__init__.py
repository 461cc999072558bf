"""A step that skips every block: its input plus all deltas that were kept as INT8, in one pass."""

from pallas_kernels.add_deltas.api import add_deltas
from pallas_kernels.add_deltas.config import AddDeltasConfig

__all__ = ["AddDeltasConfig", "add_deltas"]
