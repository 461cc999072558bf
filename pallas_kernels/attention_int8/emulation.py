"""The kernel's block algorithm in plain JAX: the same codes, blocks in the same order, the same running maximum.

What differs is inside a product of the hardware: fp8 products accumulate with fewer bits there, which `truncates`
imitates at a hundred times the work; and its exp2 is approximate.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from pallas_kernels.attention_int8 import fp8_sums
from pallas_kernels.attention_int8.config import AttentionConfig
from pallas_kernels.attention_int8.numbers import (
    F16_BIAS,
    F16_ONE,
    GROUP,
    HEAD,
    LINEAR_GROUPS,
    LINEAR_SHIFT,
    PARABOLA,
    PEAK_8BIT,
    place_of,
)
from pallas_kernels.attention_int8.operands import Operands
from pallas_kernels.mosaic import ceil_div
from pallas_kernels.rounding import rounded

LOWEST = -1e30
State = tuple[Array, Array, Array, Array | None]  # output, sums, maxima, promoted output


def run(
    x: Operands,
    *,
    heads: int,
    queries: int,
    valid_keys: int,
    config: AttentionConfig,
    with_lse: bool,
    truncates: bool = False,
) -> tuple[Array, Array | None]:
    """As the kernel's `run`. `truncates`: products of 8 bits lose what the hardware's do, unless promoted in time."""
    narrow = x.v.dtype == jnp.float8_e4m3fn
    width = x.v.shape[1] if narrow else HEAD
    rows = (x.q.shape[0], queries)
    truncates = truncates and narrow
    kept = jnp.zeros((*rows, width)) if truncates else None
    start = jnp.zeros((*rows, width)), jnp.zeros(rows), jnp.full(rows, -jnp.inf), kept
    step = functools.partial(_step, x, narrow=narrow, valid_keys=valid_keys, config=config)
    blocks = jnp.arange(ceil_div(valid_keys, config.block_kv))
    (out, total, top, kept), _ = lax.scan(lambda state, j: (step(state, j), None), start, blocks)
    out = out if kept is None else out + kept
    # In 8 bits a column of ones sums the rows, and is zero where a key does not exist.
    total = out[..., HEAD] if narrow else total
    out = out[..., :HEAD] / total[..., None] * x.v_scale[:, None] + x.v_mean[:, None]
    out = jnp.moveaxis(out.reshape(-1, heads, queries, HEAD), 1, 2).astype(jnp.bfloat16)
    peak = PEAK_8BIT if narrow else 0.0
    return out, (top - peak + jnp.log2(total)) * np.float32(np.log(2)) if with_lse else None


def _step(x: Operands, state: State, j: Array, *, narrow: bool, valid_keys: int, config: AttentionConfig) -> State:
    """One block of keys."""
    out, total, top, kept = state
    keys, queries = config.block_kv, out.shape[1]
    k = lax.dynamic_slice_in_dim(x.k, j * keys, keys, axis=1)
    scores = _scores(x.q, k)
    exists = (j * keys + jnp.arange(keys) < valid_keys)[None, None]
    if x.k.dtype != jnp.int8:  # smoothed keys need no mask here: padding scores 0, never above the maximum
        scores = jnp.where(exists, scores, LOWEST)
    scale = x.q_scale[:, :queries] * lax.dynamic_slice_in_dim(x.k_scale, j, 1, axis=1)
    new_top = jnp.maximum(top, scores.max(-1) * scale)
    peak = PEAK_8BIT if narrow else 0.0
    logs = scores * scale[..., None] + (peak - new_top)[..., None]
    alpha = jnp.exp2(top - new_top)
    if narrow:
        weights = _weights_8bit(logs, config.linear)
        v = jnp.swapaxes(lax.dynamic_slice_in_dim(x.v, j * keys, keys, axis=2), 1, 2)
    else:
        logs = jnp.where(exists, logs, LOWEST)
        weights = _weights_f16(logs) if x.v.dtype == jnp.float16 else jnp.exp2(logs)
        v = lax.dynamic_slice_in_dim(x.v, j * keys, keys, axis=1)
    total = total * alpha + weights.sum(-1)
    left = _in_order_of_values(weights) if narrow else rounded(weights, v.dtype)
    out = out * alpha[..., None]
    if kept is None:
        product = jnp.einsum("hqk,hkc->hqc", left, v.astype(jnp.float32), precision=lax.Precision.HIGHEST)
        return out + product, total, new_top, None
    out, kept = fp8_sums.accumulate(out, left, v.astype(jnp.float32)), kept * alpha[..., None]
    if config.promote:
        ones = jnp.arange(out.shape[-1]) >= HEAD  # these every block
        moves = (ones | ((j + 1) % config.promote == 0))[None, None]
        out, kept = jnp.where(moves, 0, out), jnp.where(moves, kept + out, kept)
    return out, total, new_top, kept


def _scores(q: Array, k: Array) -> Array:
    """Of codes in f32: integers below 2^24, so exact. XLA's of s8 are wrong on a GPU where it may not tune them."""
    if q.dtype == jnp.int8:
        q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    exact = lax.Precision.HIGHEST if q.dtype == jnp.float32 else lax.Precision.DEFAULT
    return jnp.einsum("hqc,hkc->hqk", q, k, precision=exact, preferred_element_type=jnp.float32)


def _weights_8bit(logs: Array, linear: int) -> Array:
    """What the e4m3 codes stand for, exact or interpolated as the position of the key says."""
    exact = rounded(jnp.exp2(logs), jnp.float8_e4m3fn)
    code = jnp.clip(jnp.round(8 * (logs + 7) - LINEAR_SHIFT), 0, 126).astype(jnp.uint8)
    interpolated = lax.bitcast_convert_type(code, jnp.float8_e4m3fn).astype(jnp.float32)
    group = jnp.arange(logs.shape[-1]) // GROUP % LINEAR_GROUPS
    return jnp.where((group < linear)[None, None], interpolated, exact)


def _weights_f16(logs: Array) -> Array:
    """The f16 whose code is the logarithm, interpolated, times a parabola in its mantissa."""
    code = jnp.round(jnp.clip((logs + F16_BIAS) / 16, 0, 1) * (16 * F16_ONE)).astype(jnp.uint16)
    mantissa = lax.bitcast_convert_type((code & 0x3FF) | 0x3C00, jnp.float16).astype(jnp.float32)
    c0, c1, c2 = PARABOLA
    half = functools.partial(rounded, dtype=jnp.float16)
    factor = half(half(c2 * mantissa + c1) * mantissa + c0)
    return half(lax.bitcast_convert_type(code, jnp.float16).astype(jnp.float32) * factor)


def _in_order_of_values(weights: Array) -> Array:
    """Columns of 8-bit V are keys permuted inside groups; scores are in order."""
    keys = np.argsort([place_of(key) for key in range(GROUP)])
    return weights.reshape(*weights.shape[:-1], -1, GROUP)[..., keys].reshape(weights.shape)
