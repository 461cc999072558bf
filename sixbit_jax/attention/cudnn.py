"""cuDNN's fused attention, bf16 or f16 on NVIDIA GPUs.

The dense baseline (559 TFLOP/s at 12 x 32768 x 128 on an H200).
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

if TYPE_CHECKING:
    from sixbit_jax.attention.api import AttentionSpec


def supports(spec: "AttentionSpec") -> str | None:
    if spec.platform != "gpu":
        return f"needs an NVIDIA GPU, this is {spec.platform}"
    if spec.dtype not in ("bfloat16", "float16"):
        return f"takes bfloat16 or float16, not {spec.dtype}"
    if spec.head_dim % 8 or spec.head_dim > 256:
        return f"head dimension {spec.head_dim} is not a multiple of 8 up to 256"
    return None


def run(
    q: Float[Array, "b q a c"], k: Float[Array, "b k a c"], v: Float[Array, "b k a c"], valid_keys: int
) -> Float[Array, "b q a c"]:
    if valid_keys == k.shape[1]:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    b, queries = q.shape[:2]
    lengths = (jnp.full((b,), queries, jnp.int32), jnp.full((b,), valid_keys, jnp.int32))
    return jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=lengths[0], key_value_seq_lengths=lengths[1], implementation="cudnn"
    )
