"""y = x · Wᵀ + b under a named implementation, fixed or chosen while the program runs."""

from sixbit_jax.linear.api import LinearSpec, explain, implementations, linear
from sixbit_jax.linear.routed import routed_linear

__all__ = ["LinearSpec", "explain", "implementations", "linear", "routed_linear"]
