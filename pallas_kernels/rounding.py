"""Rounding to a narrow type and back, for code that XLA compiles."""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax


def rounded(x: Array, dtype: Any) -> Array:
    """x as `dtype` has it, in f32.

    XLA on a GPU takes a conversion and its way back for nothing (`xla_allow_excess_precision`), unless something stands
    between the two: without the barrier 4.8 % of NVFP4 codes were those for a block scale that was never rounded. bf16
    has f32's exponents, so it needs none, and fuses.

    >>> import jax.numpy as jnp
    >>> rounded(jnp.float32(1.1), jnp.float8_e4m3fn).item()
    1.125
    """
    if dtype == jnp.bfloat16:
        return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return lax.optimization_barrier(x.astype(dtype)).astype(jnp.float32)
