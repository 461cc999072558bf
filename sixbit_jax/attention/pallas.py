"""INT8 attention on a Hopper GPU (`pallas_kernels.attention_int8`); elsewhere its emulation, the same numbers slowly.

It changes the result, so it is only ever chosen by name: "int8" for the fastest, "int8_pv16" to keep V in 16 bits.
"""

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels import hopper
from pallas_kernels.columns import Columns
from sixbit_jax.attention.before import Before

if TYPE_CHECKING:
    from sixbit_jax.attention.api import AttentionSpec

HEAD_DIM = 128
# Cross-attention reads few keys: eight bits of V would save next to nothing of a forward and cost most of its error.
FEW_KEYS = 1024
# Real queries and keys have channels far larger than others. On tiny-wan INT8 with 16-bit V is off by at most 2.5 % as
# they are, 0.9 % rotated.
ROTATE = True


def supports(spec: "AttentionSpec") -> str | None:
    if spec.head_dim != HEAD_DIM:
        return f"takes a head dimension of {HEAD_DIM}, not {spec.head_dim}"
    if spec.dtype not in ("bfloat16", "float16", "float32"):
        return f"takes bfloat16, float16 or float32, not {spec.dtype}"
    # Any GPU compiles the kernel, so another one is refused; on a CPU its emulation runs.
    return hopper.refusal(spec.platform) if spec.platform == "gpu" else None


def run(
    q: Float[Array, "b q a c"] | Columns,
    k: Float[Array, "b k a c"] | Columns,
    v: Float[Array, "b k a c"] | Columns,
    valid_keys: int,
    before: Before,
) -> Float[Array, "b q a c"]:
    """V and the weights in e4m3, but 16 bits where keys are few."""
    return _run(q, k, v, valid_keys, before, "bf16" if valid_keys <= FEW_KEYS else "e4m3")


def run_pv16(
    q: Float[Array, "b q a c"] | Columns,
    k: Float[Array, "b k a c"] | Columns,
    v: Float[Array, "b k a c"] | Columns,
    valid_keys: int,
    before: Before,
) -> Float[Array, "b q a c"]:
    return _run(q, k, v, valid_keys, before, "bf16")


def _run(
    q: Float[Array, "b q a c"] | Columns,
    k: Float[Array, "b k a c"] | Columns,
    v: Float[Array, "b k a c"] | Columns,
    valid_keys: int,
    before: Before,
    pv: str,
) -> Float[Array, "b q a c"]:
    # Here, not above: Mosaic GPU takes most of a second to import.
    from pallas_kernels import attention_int8 as kernel

    # The fused prologue is one pass over each of q, k and v, and knows bf16.
    prologue = "fused" if q.dtype == k.dtype == v.dtype == jnp.bfloat16 else "xla"
    q_norm, k_norm = (None if x is None else x.astype(jnp.float32) for x in (before.q_norm, before.k_norm))
    first = kernel.Before(q_norm, k_norm, before.rope, before.eps)
    return kernel.attention_int8(q, k, v, valid_keys=valid_keys, before=first, pv=pv, prologue=prologue, rotate=ROTATE)
