"""Rotary position embedding over three axes, adjacent pairs rotated together.

The head dimension is split in three even parts for time, height and width (44/42/42 at 128). Angles are built in
float64, as the reference does, and rounded once to f32.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

THETA = 10000.0


def split_axes(head_dim: int) -> tuple[int, int, int]:
    """Real dimensions per axis (t, h, w): height and width get the even part of a third each, time the rest.

    >>> split_axes(128)
    (44, 42, 42)
    """
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def rope_table(grid: tuple[int, int, int], head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """(cos, sin) of shape (tokens, head_dim) for a (t, h, w) grid in row-major order; each angle appears twice, for the
    two of its pair.

    The sine is negative for the first of a pair, so that rotating is `x * cos + swapped(x) * sin`.
    """
    angles = []
    for axis, (size, dims) in enumerate(zip(grid, split_axes(head_dim), strict=True)):
        frequencies = THETA ** -(np.arange(0, dims, 2, dtype=np.float64) / dims)
        per_position = np.outer(np.arange(size, dtype=np.float64), frequencies)
        shape = [1, 1, 1, dims // 2]
        shape[axis] = size
        angles.append(np.broadcast_to(per_position.reshape(shape), (*grid, dims // 2)))
    pairs = np.concatenate(angles, axis=-1).reshape(-1, head_dim // 2)
    cos = np.repeat(np.cos(pairs), 2, axis=-1)
    sin = np.stack([-np.sin(pairs), np.sin(pairs)], axis=-1).reshape(cos.shape)
    return cos.astype(np.float32), sin.astype(np.float32)


def rotate(x: Float[Array, "b s a c"], cos: Float[Array, "s c"], sin: Float[Array, "s c"]) -> Float[Array, "b s a c"]:
    """Rotate every adjacent pair of the last axis by its token's angle, in f32."""
    x32 = x.astype(jnp.float32)
    # A reversal inside pairs instead of even/odd slices: XLA fuses it into one pass over x.
    swapped = jnp.flip(x32.reshape(*x.shape[:-1], -1, 2), axis=-1).reshape(x.shape)
    return (x32 * cos[None, :, None] + swapped * sin[None, :, None]).astype(x.dtype)
