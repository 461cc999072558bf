"""Queries, keys and values as the kernel reads them: the prologue, in XLA.

K is smoothed: its mean over the tokens is subtracted. That takes one number from all scores of a row, which softmax
does not see, and from K what most of the range of an 8-bit code would go to. So is V to e4m3: the weights of a row sum
to 1, so its mean is added to the result; and sums about zero are what the tensor cores add up well (`fp8_sums`).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels.attention_int8.config import CONSUMERS, AttentionConfig
from pallas_kernels.attention_int8.numbers import HEAD, LOG2E, ONES, ROWS
from pallas_kernels.mosaic import ceil_div
from pallas_kernels.quantize_rows.spec import signs
from pallas_kernels.rounding import rounded

E4M3_MAX = 448.0
SMALLEST = 1e-12  # the scale of zeros


class Before(NamedTuple):
    """What happens to queries and keys first; every part optional."""

    q_norm: Array | None = None  # f32 (a·128,): the factors of an RMS norm over all heads
    k_norm: Array | None = None
    rope: tuple[Array, Array] | None = None  # cos, sin f32 (s, 128), twice each, the sine of a pair's first negative
    eps: Any = 1e-6


class Operands(NamedTuple):
    """Heads lead. Tokens of K and V are padded to whole blocks, the scales of Q to whole tiles."""

    q: Array  # (b·a, s, 128) s8 or bf16
    q_scale: Array  # (b·a, s') f32: score to log2 units, with 128**-0.5
    k: Array  # (b·a, kv, 128) as q
    k_scale: Array  # (b·a, kv / block) f32
    v: Array  # (b·a, 136, kv) e4m3, transposed, ones below, permuted in groups of 16; or (b·a, kv, 128) f16 or bf16
    v_scale: Array  # (b·a, 128) f32
    v_mean: Array  # (b·a, 128) f32: what the result lacks


def quantize(
    q: Array,
    k: Array,
    v: Array,
    before: Before,
    *,
    valid_keys: int,
    pv: str,
    config: AttentionConfig,
    rotate: bool = False,
) -> Operands:
    """Q to s8, a scale per token; K smoothed to s8, one per block; V to e4m3 or f16, one per channel, or to bf16.

    Q and K are rotated by Hadamard-128 first if `rotate`; their products stay. Channels that are far larger than the
    others set the scale of all: rotated, they are shared out over all 128. On tiny-wan the INT8 of Q and K then costs
    at most 0.8 % instead of 2.5 %; noise is as it was.

    Heads move to the front last, as narrow codes: before, XLA would write f32 copies.
    """
    q32 = positioned(q, before.q_norm, before)
    k32 = existing(positioned(k, before.k_norm, before), valid_keys)
    k32 = existing(k32 - k32.sum(1, keepdims=True) / valid_keys, valid_keys)
    if rotate:
        q32, k32 = (turned(x) * HEAD**-0.5 for x in (q32, k32))
    batch, _, heads, _ = k.shape
    blocks = _pad(k32, config.block_kv).reshape(batch, -1, config.block_kv, heads, HEAD)

    q8, q_scale = _to_s8(q32, (-1,))
    k8, k_scale = _to_s8(blocks, (2, 4))
    k8 = _heads_lead(k8.reshape(batch, -1, heads, HEAD))
    if pv == "e4m3":
        v_mean, v_scale = centre(v, valid_keys)
        v = _to_e4m3(v.astype(jnp.float32), v_mean, v_scale, valid_keys, k8.shape[1])
    else:
        v, v_scale = wide_values(v, valid_keys, pv, config)
        v_mean = jnp.zeros_like(v_scale)
    q_scale = jnp.swapaxes(q_scale[..., 0], 1, 2).reshape(batch * heads, -1)
    k_scale = jnp.swapaxes(k_scale[:, :, 0, :, 0], 1, 2).reshape(batch * heads, -1)
    v_scale, v_mean = v_scale.reshape(-1, HEAD), v_mean.reshape(-1, HEAD)
    if pv == "e4m3":
        v_mean = missing_mean(v, v_mean, v_scale, valid_keys)
    return Operands(_heads_lead(q8), per_row(q_scale, config), k8, k_scale, v, v_scale, v_mean)


def turned(x: Array) -> Array:
    """Rows of 128, rounded to bf16, by Sylvester's matrix; f32, without the factor that makes the rotation orthonormal.

    A product rounds to bf16 what it reads anyway, and eight bits are more than INT8 will keep.
    """
    matrix = jnp.asarray(signs(HEAD), jnp.bfloat16)
    return jnp.einsum("bsac,ce->bsae", x.astype(jnp.bfloat16), matrix, preferred_element_type=jnp.float32)


def as_bf16(q: Array, k: Array, v: Array, before: Before, *, config: AttentionConfig) -> Operands:
    """No scales but that of the scores."""
    q, k = positioned(q, before.q_norm, before), positioned(k, before.k_norm, before)
    q, k, v = (_heads_lead(x.astype(jnp.bfloat16)) for x in (q, _pad(k, config.block_kv), _pad(v, config.block_kv)))
    one = jnp.ones((q.shape[0], 1), jnp.float32)
    rows = per_row(jnp.broadcast_to(one, q.shape[:2]), config)
    blocks = jnp.broadcast_to(one, (q.shape[0], k.shape[1] // config.block_kv))
    v_scale = jnp.broadcast_to(one, (q.shape[0], HEAD))
    return Operands(q, rows, k, blocks, v, v_scale, jnp.zeros_like(v_scale))


def centre(v: Array, valid: int) -> tuple[Array, Array]:
    """Per channel, in one pass: the mean of V, and the scale that puts what is farthest from it at e4m3's largest."""
    v = v[:, :valid]
    mean = v.astype(jnp.float32).sum(1) / valid
    # In V's own 16 bits, which changes nothing: all three in f32 would take more shared memory than XLA allows a pass.
    largest, smallest = (x.astype(jnp.float32) for x in (v.max(1), v.min(1)))
    return mean, jnp.maximum(jnp.maximum(largest - mean, mean - smallest), SMALLEST) / E4M3_MAX


def missing_mean(codes: Array, mean: Array, scale: Array, valid: int) -> Array:
    """V's mean (b·a, 128) but for what its codes still have of it.

    Roundings of bf16 values, which lie on a grid, do not quite cancel out: they leave 0.0004 of a deviation, always the
    same way. A row that attends to all of 75,600 tokens of noise comes to 0.006 of one.
    """
    values = rounded(codes, codes.dtype)[:, :HEAD]  # behind its barrier a slice would be a copy
    return mean - scale * (values.sum(2) / valid)


def wide_values(v: Array, valid_keys: int, pv: str, config: AttentionConfig) -> tuple[Array, Array]:
    """V in 16 bits and its scales."""
    v32 = existing(v.astype(jnp.float32), valid_keys)
    if pv == "f16":
        v_scale = jnp.maximum(jnp.abs(v32).max(1), SMALLEST)
        return _heads_lead(_pad(v32 / v_scale[:, None], config.block_kv).astype(jnp.float16)), v_scale
    v_scale = jnp.ones((v.shape[0], *v.shape[2:]), jnp.float32)
    return _heads_lead(_pad(v32, config.block_kv).astype(jnp.bfloat16)), v_scale


def positioned(x: Array, norm: Array | None, before: Before) -> Array:
    """Normed and rotated, in f32."""
    y = x.astype(jnp.float32)
    if norm is not None:
        y = y * inverse_norm(x, before.eps)[:, :, None, None] * norm.reshape(1, 1, *x.shape[2:])
    if before.rope is None:
        return y
    cos, sin = (table[None, :, None] for table in before.rope)
    return y * cos + swapped(y) * sin


def swapped(x: Array) -> Array:
    """The two of every pair of columns."""
    return jnp.flip(x.reshape(*x.shape[:-1], -1, 2), axis=-1).reshape(x.shape)


def inverse_norm(x: Array, eps: Any) -> Array:
    """(b, s): one over the root mean square of a token, all heads together."""
    y = x.astype(jnp.float32)
    return lax.rsqrt((y * y).mean((2, 3)) + eps)


def permute_values(v: Array) -> Array:
    """(…, kv): the key at 16h + 8e + 2c + j goes to 16h + 4c + 2e + j (`numbers.place_of`); a transpose, no gather."""
    split = v.reshape(*v.shape[:-1], -1, 2, 4, 2)
    return jnp.swapaxes(split, -3, -2).reshape(v.shape)


def existing(x: Array, valid: int) -> Array:
    """Zero from token `valid` on, whatever was there."""
    return x if valid == x.shape[1] else jnp.where((jnp.arange(x.shape[1]) < valid)[None, :, None, None], x, 0)


def pad_tokens(x: Array, tokens: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, tokens - x.shape[1]), (0, 0), (0, 0)))


def per_row(scale: Array, config: AttentionConfig) -> Array:
    """In log2 units, padded to whole tiles."""
    tile = ROWS * CONSUMERS * config.cluster
    rows = ceil_div(scale.shape[1], tile) * tile
    return jnp.pad(scale * (LOG2E * HEAD**-0.5), ((0, 0), (0, rows - scale.shape[1])))


def _heads_lead(x: Array) -> Array:
    """(b, tokens, a, c) to (b·a, tokens, c)."""
    return jnp.moveaxis(x, 2, 1).reshape(-1, x.shape[1], HEAD)


def _pad(x: Array, multiple: int) -> Array:
    """Tokens to whole blocks."""
    return pad_tokens(x, ceil_div(x.shape[1], multiple) * multiple)


def _to_s8(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    scale = jnp.maximum(jnp.abs(x).max(axes, keepdims=True), SMALLEST) / 127
    return jnp.clip(jnp.round(x / scale), -127, 127).astype(jnp.int8), scale


def _to_e4m3(v: Array, mean: Array, scale: Array, valid: int, tokens: int) -> Array:
    """V transposed over rows of ones, which end where the keys do."""
    centred = existing((v - mean[:, None]) / scale[:, None], valid)
    codes = jnp.clip(centred, -E4M3_MAX, E4M3_MAX).astype(jnp.float8_e4m3fn)
    ones = (jnp.arange(v.shape[1]) < valid).astype(jnp.float8_e4m3fn)
    ones = jnp.broadcast_to(ones[None, :, None, None], (*v.shape[:3], ONES))
    rows = pad_tokens(jnp.concatenate([codes, ones], axis=3), tokens)
    return permute_values(jnp.transpose(rows, (0, 2, 3, 1)).reshape(-1, HEAD + ONES, tokens))
