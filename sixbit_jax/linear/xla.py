"""XLA's own products (cuBLAS or Triton on a GPU): operands in their dtype, accumulation in f32."""

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

if TYPE_CHECKING:
    from sixbit_jax.linear.api import LinearSpec


def supports(spec: "LinearSpec") -> str | None:
    if spec.act is not None:
        return f'activations "{spec.act}" need a quantized weight'
    if spec.x != spec.w:
        return f"x is {spec.x} and w is {spec.w}: cast one of them"
    return None


def run(x: Float[Array, "... k"], w: Float[Array, "n k"], bias: Float[Array, " n"] | None) -> Float[Array, "... n"]:
    # Without HIGHEST a GPU rounds f32 operands to tf32, and an f32 run would no longer be the yardstick it is meant
    # to be. A 16-bit product accumulates in f32 all the same; asking for an f32 result would write it out at twice
    # the bytes (14 ms of a 1.3B forward on an H200).
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT
    y = lax.dot_general(x, w, (((x.ndim - 1,), (1,)), ((), ())), precision=precision)
    return y if bias is None else y + jnp.broadcast_to(bias.astype(y.dtype), y.shape)
