"""softmax(q·kᵀ)·v under a named implementation."""

from sixbit_jax.attention.api import AttentionSpec, attention, explain, implementations
from sixbit_jax.attention.before import Before, prepared

__all__ = ["AttentionSpec", "Before", "attention", "explain", "implementations", "prepared"]
