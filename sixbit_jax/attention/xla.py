"""Plain XLA, a block of queries at a time, so that the score matrix never exceeds a fixed number of bytes.

Runs everywhere.
"""

import math
from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sixbit_jax.attention.reference import attend

if TYPE_CHECKING:
    from sixbit_jax.attention.api import AttentionSpec

# One block of f32 scores. Large enough to fill a GPU, small enough to stay out of the way of the weights.
SCORE_BYTES = 256 * 2**20


def supports(spec: "AttentionSpec") -> str | None:
    return None


def run(
    q: Float[Array, "b q a c"], k: Float[Array, "b k a c"], v: Float[Array, "b k a c"], valid_keys: int
) -> Float[Array, "b q a c"]:
    b, queries, heads, head_dim = q.shape
    blocks = math.ceil(4 * b * heads * queries * valid_keys / SCORE_BYTES)
    if blocks == 1:
        return attend(q, k, v, valid_keys)
    size = math.ceil(queries / blocks)
    padded = jnp.pad(q, ((0, 0), (0, size * blocks - queries), (0, 0), (0, 0)))
    stacked = jnp.moveaxis(padded.reshape(b, blocks, size, heads, head_dim), 1, 0)
    out = lax.map(lambda block: attend(block, k, v, valid_keys), stacked)
    return jnp.moveaxis(out, 0, 1).reshape(b, blocks * size, heads, head_dim)[:, :queries]
