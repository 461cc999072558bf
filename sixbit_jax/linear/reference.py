"""The oracle: everything in f32 at the highest precision, rounded once at the end."""

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

if TYPE_CHECKING:
    from sixbit_jax.linear.api import LinearSpec


def supports(spec: "LinearSpec") -> str | None:
    return None if spec.act is None else f'activations "{spec.act}" need a quantized weight'


def run(x: Float[Array, "... k"], w: Float[Array, "n k"], bias: Float[Array, " n"] | None) -> Float[Array, "... n"]:
    y = jnp.einsum("...k,nk->...n", x.astype(jnp.float32), w.astype(jnp.float32), precision=lax.Precision.HIGHEST)
    if bias is not None:
        y = y + jnp.broadcast_to(bias.astype(jnp.float32), y.shape)
    return y.astype(x.dtype)
