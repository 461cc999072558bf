"""The oracle: what a product means, in f32 at the highest precision, rounded once at the end.

Operands are rounded to their formats and read back as f32; nothing else is approximated. A weight that the route
expands to INT8 is expanded here too: that rounding belongs to the route, not to an implementation of it.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from sixbit_jax.formats import QuantizedWeight, main_weight, to_int8
from sixbit_jax.linear.activations import quantize, rotate, smooth, value_of
from sixbit_jax.linear.spec import INTEGERS, LinearSpec


def supports(spec: LinearSpec) -> str | None:
    if spec.act is not None and not spec.quantized:
        return f'activations "{spec.act}" need a quantized weight'
    return None


def run(
    x: Float[Array, "... k"],
    w: Float[Array, "n k"] | QuantizedWeight,
    bias: Float[Array, " n"] | None,
    act: str | None,
) -> Float[Array, "... n"]:
    y = _quantized(x, w, act) if isinstance(w, QuantizedWeight) else _product(x.astype(jnp.float32), w)
    if bias is not None:
        y = y + jnp.broadcast_to(bias.astype(jnp.float32), y.shape)
    return y.astype(x.dtype)


def _quantized(x: Float[Array, "... k"], w: QuantizedWeight, act: str | None) -> Float32[Array, "... n"]:
    smoothed = smooth(x, w)
    rounded = quantize(rotate(smoothed, w), act, w.act_group)
    stored = QuantizedWeight(to_int8(w.weight) if act in INTEGERS else w.weight, zero=w.zero)
    y = _product(value_of(rounded), main_weight(stored))
    if w.low_rank is None:
        return y
    down, up = w.low_rank
    return y + _product(_product(smoothed, down), up)


def _product(x: Float32[Array, "... k"], w: Float[Array, "n k"]) -> Float32[Array, "... n"]:
    return jnp.einsum("...k,nk->...n", x, w.astype(jnp.float32), precision=lax.Precision.HIGHEST)
