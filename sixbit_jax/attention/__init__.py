"""softmax(q·kᵀ)·v under a named implementation."""

from sixbit_jax.attention.api import AttentionSpec, attention, explain, implementations

__all__ = ["AttentionSpec", "attention", "explain", "implementations"]
