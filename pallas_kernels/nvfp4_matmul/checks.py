"""Refusals of packed weights."""

import jax.numpy as jnp
from jax import Array

from pallas_kernels import checks


def check_weight(op: str, packed: Array, block_scale: Array, prefix: str = "") -> None:
    checks.check_array(op, f"{prefix}packed", packed, jnp.uint8)
    checks.check_array(op, f"{prefix}block_scale", block_scale, jnp.float8_e4m3fn)
    checks.check_rank(op, f"{prefix}packed", packed, 2)
    checks.check_rows(op, f"{prefix}packed", packed)
    n, half = packed.shape
    checks.check_multiple(op, f"k (twice the columns of {prefix}packed)", 2 * half, 16)
    checks.check_shape(op, f"{prefix}block_scale", block_scale, (n, half // 8))
    checks.check_finite(op, f"{prefix}block_scale", block_scale)
