"""The prologue in kernels: what `operands.quantize` does, in one pass over each of Q, K and V.

What the passes need to know first, XLA sums up: the norm of every token of Q and K, the mean of K's tokens, the mean
and the range of every channel of V.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels.attention_int8 import prologue_sm90
from pallas_kernels.attention_int8.config import AttentionConfig
from pallas_kernels.attention_int8.numbers import HEAD, ONES, ROWS
from pallas_kernels.attention_int8.operands import (
    E4M3_MAX,
    Before,
    Operands,
    centre,
    existing,
    inverse_norm,
    missing_mean,
    pad_tokens,
    per_row,
    permute_values,
    swapped,
    turned,
    wide_values,
)
from pallas_kernels.attention_int8.prologue_sm90 import Round, round_rows
from pallas_kernels.columns import Columns, as_columns
from pallas_kernels.mosaic import ceil_div, in_eights

QUERY_BLOCK = 256  # tokens a CTA: the most rows that registers hold


def quantize(
    q: Array | Columns,
    k: Array | Columns,
    v: Array | Columns,
    before: Before,
    *,
    valid_keys: int,
    pv: str,
    config: AttentionConfig,
    rotate: bool = False,
) -> Operands:
    """As `operands.quantize`, of bf16. `Columns` are read where they lie."""
    q, k, v = (as_columns(x) for x in (q, k, v))
    batch, keys, heads, _ = k.shape
    tokens = ceil_div(keys, config.block_kv) * config.block_kv
    angles = None if before.rope is None else interleaved(*before.rope)
    kept = dict(rotated=angles is not None, turned=rotate)
    queries = q.shape[1] + -q.shape[1] % 8
    q_round = Round(queries, QUERY_BLOCK, queries, shared=False, normed=before.q_norm is not None, **kept)
    k_normed = before.k_norm is not None
    k_round = Round(tokens, config.block_kv, valid_keys, shared=True, centred=True, normed=k_normed, **kept)
    # The mean without its rounding to bf16, as the kernel subtracts it from what has not been rounded either.
    mean = _mean_key(k.cut_out(), before, valid_keys)
    q8, q_scale = _rows(q, _vectors(before.q_norm, None, heads, batch), before, angles, q_round)
    k8, k_scale = _rows(k, _vectors(before.k_norm, mean, heads, batch), before, angles, k_round)
    if pv == "e4m3":
        # Behind the barrier V is not the keys' array to XLA, whose pass has no room for all three sums of V.
        v_mean, v_scale = centre(lax.optimization_barrier(v).cut_out(), valid_keys)
        v8 = _values(v, v_mean, v_scale, tokens, valid_keys)
    else:
        v8, v_scale = wide_values(v.cut_out(), valid_keys, pv, config)
        v_mean = jnp.zeros_like(v_scale)
    q_scale = per_row(q_scale.reshape(batch * heads, -1)[:, :queries], config)
    v_scale, v_mean = v_scale.reshape(-1, HEAD), v_mean.reshape(-1, HEAD)
    if pv == "e4m3":
        v_mean = missing_mean(v8, v_mean, v_scale, valid_keys)
    return Operands(q8, q_scale, k8, k_scale[:, :, 0, 0], v8, v_scale, v_mean)


def _mean_key(k: Array, before: Before, valid: int) -> Array:
    """(b, a, 128): of the first `valid` keys, normed and rotated.

    Pairs are swapped in the sums, not in the keys: XLA then reads the keys once and writes none.
    """
    batch, _, heads, _ = k.shape
    y = k.reshape(*k.shape[:2], -1)[:, :valid].astype(jnp.float32)
    if before.k_norm is not None:
        y = y * inverse_norm(k, before.eps)[:, :valid, None]
    factors = 1.0 if before.k_norm is None else before.k_norm[None]
    if before.rope is None:
        return (y.sum(1) * factors / valid).reshape(batch, heads, HEAD)
    cos, sin = (jnp.tile(table[None, :valid], (1, 1, heads)) for table in before.rope)
    straight, crossed = ((y * table).sum(1) * factors for table in (cos, swapped(sin)))
    return ((straight + swapped(crossed)) / valid).reshape(batch, heads, HEAD)


def interleaved(cos: Array, sin: Array) -> Array:
    """Cosine and sine of each pair in turn, in f16: within 2^-12, a sixteenth of half an INT8 step."""
    return jnp.stack([cos[:, ::2], sin[:, 1::2]], axis=-1).reshape(cos.shape).astype(jnp.float16)


def _vectors(norm: Array | None, mean: Array | None, heads: int, batch: int) -> Array | None:
    """(b, a, 2, 128): the factors of the norm and the mean, by head."""
    if norm is None and mean is None:
        return None
    shape = (batch, heads, HEAD)
    factor = jnp.ones(shape) if norm is None else jnp.broadcast_to(norm.reshape(1, heads, HEAD), shape)
    return jnp.stack([factor, jnp.zeros(shape) if mean is None else mean], axis=2)


def _rows(x: Columns, vectors: Array | None, before: Before, angles: Array | None, plan: Round) -> Any:
    inverse = inverse_norm(x.cut_out(), before.eps) if plan.normed else None

    def kernel(x, vectors, inverse, angles):
        inverse = None if inverse is None else in_eights(inverse, axis=1)
        return round_rows(_in_eights(x), vectors, inverse, None if angles is None else in_eights(angles), plan)

    return lax.platform_dependent(
        *(x, vectors, inverse, angles), cuda=kernel, default=lambda *operands: emulate_rows(*operands, plan)
    )


def _values(v: Columns, mean: Array, scale: Array, tokens: int, valid: int) -> Array:
    def kernel(v, vectors):
        return prologue_sm90.transpose_values(_in_eights(v), vectors, tokens=tokens, valid=valid)

    default = lambda v, vectors: emulate_values(v, vectors, tokens=tokens, valid=valid)
    vectors = jnp.stack([mean, 1.0 / scale], axis=2)
    return lax.platform_dependent(v, vectors, cuda=kernel, default=default)


def _in_eights(x: Columns) -> Columns:
    return dataclasses.replace(x, merged=in_eights(x.merged, axis=1))


# The kernels in plain JAX.


def emulate_rows(x: Columns, vectors: Array | None, inverse: Array | None, angles: Array | None, plan: Round) -> Any:
    """`prologue_sm90.round_rows`: codes s8 (b·a, tokens, 128), scales f32 (b·a, blocks, tiles, 64)."""
    y = x.cut_out().astype(jnp.float32)
    if plan.normed:
        y = y * inverse[:, :, None, None] * vectors[:, None, :, 0]
    if plan.rotated:
        a, b = y[..., ::2], y[..., 1::2]
        cosine, sine = (angles[None, :, None, i::2].astype(jnp.float32) for i in (0, 1))
        y = jnp.stack([a * cosine - b * sine, b * cosine + a * sine], axis=-1).reshape(y.shape)
    if plan.centred:
        y = y - vectors[:, None, :, 1]
    if plan.turned:
        y = turned(y)
    if plan.shared:
        y = existing(y, plan.valid)
    y = jnp.moveaxis(pad_tokens(y, plan.blocks * plan.block), 2, 1).reshape(-1, plan.blocks, plan.block, HEAD)
    amax = jnp.abs(y).max((2, 3) if plan.shared else 3, keepdims=True)
    amax = jnp.maximum(jnp.broadcast_to(amax, (*y.shape[:3], 1)), prologue_sm90.SMALLEST)
    codes = jnp.round(y * (127.0 / amax)).astype(jnp.int8)
    scale = jnp.pad(amax[..., 0], ((0, 0), (0, 0), (0, plan.tiles * ROWS - plan.block))) * plan.unit
    codes = codes.reshape(y.shape[0], -1, HEAD)[:, : plan.tokens]
    return codes, scale.reshape(*scale.shape[:2], plan.tiles, ROWS)


def emulate_values(v: Columns, vectors: Array, *, tokens: int, valid: int) -> Array:
    """`prologue_sm90.transpose_values`."""
    mean, inverse = (vectors[:, None, :, i] for i in (0, 1))
    y = (v.cut_out().astype(jnp.float32) - mean) * inverse
    codes = jnp.clip(existing(y, valid), -E4M3_MAX, E4M3_MAX).astype(jnp.float8_e4m3fn)
    ones = jnp.broadcast_to((jnp.arange(v.shape[1]) < valid)[None, :, None, None], (*y.shape[:3], ONES))
    stacked = pad_tokens(jnp.concatenate([codes, ones.astype(codes.dtype)], axis=3), tokens)
    return permute_values(jnp.transpose(stacked, (0, 2, 3, 1)).reshape(-1, HEAD + ONES, tokens))
