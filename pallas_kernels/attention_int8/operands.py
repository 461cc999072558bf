"""Queries, keys and values as the kernel reads them: the prologue, in XLA.

K is smoothed: its mean over the tokens is subtracted. That takes one number from all scores of a row, which softmax
does not see, and from K what most of the range of an 8-bit code would go to.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from pallas_kernels.attention_int8.config import CONSUMERS, AttentionConfig
from pallas_kernels.attention_int8.numbers import HEAD, LOG2E, ONES, ROWS
from pallas_kernels.mosaic import ceil_div

E4M3_MAX = 448.0
SMALLEST = 1e-12  # the scale of zeros


class Operands(NamedTuple):
    """Heads lead. Tokens of K and V are padded to whole blocks, the scales of Q to whole tiles."""

    q: Array  # (b·a, s, 128) s8 or bf16
    q_scale: Array  # (b·a, s') f32: score to log2 units, with 128**-0.5
    k: Array  # (b·a, kv, 128) as q; permuted inside groups of 16 when V has 8 bits
    k_scale: Array  # (b·a, kv / block) f32
    v: Array  # (b·a, 136, kv) e4m3, transposed and ones below; or (b·a, kv, 128) f16 or bf16
    v_scale: Array  # (b·a, 128) f32


def quantize(q: Array, k: Array, v: Array, *, valid_keys: int, pv: str, config: AttentionConfig) -> Operands:
    """Q to s8, a scale per token; K smoothed to s8, one per block; V to e4m3 or f16, one per channel, or to bf16.

    Heads move to the front last, as narrow codes: before, XLA would write f32 copies.
    """
    q32, k32, v32 = (x.astype(jnp.float32) for x in (q, _existing(k, valid_keys), _existing(v, valid_keys)))
    k32 = _existing(k32 - k32.sum(1, keepdims=True) / valid_keys, valid_keys)
    batch, _, heads, _ = k.shape
    blocks = _pad(k32, config.block_kv).reshape(batch, -1, config.block_kv, heads, HEAD)

    q8, q_scale = _to_s8(q32, (-1,))
    k8, k_scale = _to_s8(blocks, (2, 4))
    k8 = _heads_lead(k8.reshape(batch, -1, heads, HEAD))
    if pv == "e4m3":
        k8 = permute_keys(k8)
        v, v_scale = _to_e4m3(v32, valid_keys, k8.shape[1])
    elif pv == "f16":
        v_scale = jnp.maximum(jnp.abs(v32).max(1), SMALLEST)
        v = _heads_lead(_pad(v32 / v_scale[:, None], config.block_kv).astype(jnp.float16))
    else:
        v = _heads_lead(_pad(v32, config.block_kv).astype(jnp.bfloat16))
        v_scale = jnp.ones((batch, heads, HEAD), jnp.float32)
    q_scale = jnp.swapaxes(q_scale[..., 0], 1, 2).reshape(batch * heads, -1)
    k_scale = jnp.swapaxes(k_scale[:, :, 0, :, 0], 1, 2).reshape(batch * heads, -1)
    return Operands(_heads_lead(q8), _per_row(q_scale, config), k8, k_scale, v, v_scale.reshape(-1, HEAD))


def as_bf16(q: Array, k: Array, v: Array, *, config: AttentionConfig) -> Operands:
    """No scales but that of the scores."""
    q, k, v = (_heads_lead(x.astype(jnp.bfloat16)) for x in (q, _pad(k, config.block_kv), _pad(v, config.block_kv)))
    one = jnp.ones((q.shape[0], 1), jnp.float32)
    rows = _per_row(jnp.broadcast_to(one, q.shape[:2]), config)
    blocks = jnp.broadcast_to(one, (q.shape[0], k.shape[1] // config.block_kv))
    return Operands(q, rows, k, blocks, v, jnp.broadcast_to(one, (q.shape[0], HEAD)))


def permute_keys(k: Array) -> Array:
    """Token 16h + 4c + 2e + j goes to position 16h + 8e + 2c + j (`numbers.key_at`): a transpose, not a gather."""
    split = k.reshape(k.shape[0], -1, 4, 2, 2, HEAD)
    return jnp.swapaxes(split, 2, 3).reshape(k.shape)


def _heads_lead(x: Array) -> Array:
    """(b, tokens, a, c) to (b·a, tokens, c)."""
    return jnp.moveaxis(x, 2, 1).reshape(-1, x.shape[1], HEAD)


def _existing(x: Array, valid: int) -> Array:
    """Zero from token `valid` on, whatever was there."""
    return x if valid == x.shape[1] else jnp.where((jnp.arange(x.shape[1]) < valid)[None, :, None, None], x, 0)


def _pad(x: Array, multiple: int) -> Array:
    """Tokens to whole blocks."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), (0, 0), (0, 0)))


def _per_row(scale: Array, config: AttentionConfig) -> Array:
    """In log2 units, padded to whole tiles."""
    tile = ROWS * CONSUMERS * config.cluster
    rows = ceil_div(scale.shape[1], tile) * tile
    return jnp.pad(scale * (LOG2E * HEAD**-0.5), ((0, 0), (0, rows - scale.shape[1])))


def _to_s8(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    scale = jnp.maximum(jnp.abs(x).max(axes, keepdims=True), SMALLEST) / 127
    return jnp.clip(jnp.round(x / scale), -127, 127).astype(jnp.int8), scale


def _to_e4m3(v: Array, valid: int, tokens: int) -> tuple[Array, Array]:
    """(V transposed over rows of ones, which end where the keys do; a scale per channel)."""
    scale = jnp.maximum(jnp.abs(v).max(1), SMALLEST) / E4M3_MAX
    codes = jnp.clip(v / scale[:, None], -E4M3_MAX, E4M3_MAX).astype(jnp.float8_e4m3fn)
    ones = (jnp.arange(v.shape[1]) < valid).astype(jnp.float8_e4m3fn)
    ones = jnp.broadcast_to(ones[None, :, None, None], (*v.shape[:3], ONES))
    rows = _pad(jnp.concatenate([codes, ones], axis=3), tokens)
    return jnp.transpose(rows, (0, 2, 3, 1)).reshape(-1, HEAD + ONES, tokens), scale
