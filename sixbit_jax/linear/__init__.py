"""y = x · Wᵀ + b under a named implementation, fixed or chosen while the program runs.

x --before: GELU, LayerNorm--activations: smooth, rotate, round--> codes and scales --+
w: an array, a quantized tensor or a QuantizedWeight ---------------------------------+--reference or xla--> y
y --after: Added to a residual, through a gate
"""

from sixbit_jax.linear.after import Added
from sixbit_jax.linear.api import explain, implementations, linear, measured_linear, spec
from sixbit_jax.linear.before import Before, Gelu, LayerNorm
from sixbit_jax.linear.routed import routed_linear
from sixbit_jax.linear.spec import LinearSpec, Weight

__all__ = [
    "Added",
    "Before",
    "Gelu",
    "LayerNorm",
    "LinearSpec",
    "Weight",
    "explain",
    "implementations",
    "linear",
    "measured_linear",
    "routed_linear",
    "spec",
]
