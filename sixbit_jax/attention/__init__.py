"""softmax(q·kᵀ)·v under a named implementation."""

from pallas_kernels.columns import Columns, side_by_side
from sixbit_jax.attention.api import AttentionSpec, attention, explain, implementations
from sixbit_jax.attention.before import Before, prepared

__all__ = ["AttentionSpec", "Before", "Columns", "attention", "explain", "implementations", "prepared", "side_by_side"]
