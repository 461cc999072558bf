"""What `linear` accepts, said in one line when it is something else. Types and shapes only: nothing is computed."""

from typing import Any

from sixbit_jax.formats import QuantizedTensor, QuantizedWeight, check_parts
from sixbit_jax.formats.checks import require_float


def check_operands(x: Any, w: Any, bias: Any | None = None) -> None:
    """Refuse operands that do not multiply, before an implementation is chosen."""
    require_float("linear", x)
    if w.ndim != 2:
        raise ValueError(f"linear: w has shape {tuple(w.shape)}, expected (n, k); scan over stacked layers")
    if not x.shape or x.shape[-1] != w.shape[-1]:
        raise ValueError(f"linear: x {tuple(x.shape)} does not end in {w.shape[-1]} features, as w (n, k) expects")
    if isinstance(w, QuantizedTensor | QuantizedWeight):
        check_parts(w, "linear: w")
    else:
        require_float("linear", w, "w", "; codes without scales have no values: wrap them in an Int8Tensor")
    if bias is not None:
        require_float("linear", bias, "bias")
        if bias.shape != w.shape[:1]:
            raise ValueError(f"linear: bias has shape {tuple(bias.shape)}, w {tuple(w.shape)} needs {w.shape[:1]}")
