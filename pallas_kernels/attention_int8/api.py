"""The public functions: check, quantize, run the kernel on CUDA and its emulation elsewhere."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels import checks
from pallas_kernels.attention_int8 import emulation, kernel_sm90, operands, prologue
from pallas_kernels.attention_int8.config import AttentionConfig, choose_config
from pallas_kernels.attention_int8.numbers import HEAD, LINEAR_GROUPS
from pallas_kernels.attention_int8.operands import Before, Operands
from pallas_kernels.columns import Columns, as_array
from pallas_kernels.mosaic import device_facts, in_eights

OP = "attention_int8"
PV = ("e4m3", "f16", "bf16")
PROLOGUES = {"xla": operands.quantize, "fused": prologue.quantize}
NOTHING = Before()
DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)


def attention_int8(
    q: Array | Columns,
    k: Array | Columns,
    v: Array | Columns,
    *,
    valid_keys: int | None = None,
    before: Before = NOTHING,
    pv: str = "e4m3",
    prologue: str = "xla",
    rotate: bool = False,
    return_lse: bool = False,
    config: AttentionConfig | None = None,
) -> Any:
    """softmax(q·kᵀ / √128)·v with Q and K in INT8 and the weights and V in `pv`.

    q (b, s, a, 128); k and v (b, t, a, 128); any s and t. Keys from `valid_keys` on are padding and never seen. Returns
    (b, s, a, 128) in q's dtype and, with `return_lse`, the natural log-sum-exp of the scores (b, a, s) in f32.

    `before` is an RMS norm and a rotation of queries and keys, both optional. `prologue` says who quantizes: "xla", or
    "fused" for our own kernels, one pass over each of q, k and v, which may be `Columns` and are then read in place.

    `rotate` rounds Q and K after a Hadamard rotation, which is for channels that are far larger than others.

    "e4m3" is fastest and rounds V to three mantissa bits; over thousands of keys its sums need `config.promote`, see
    `fp8_sums`. "f16" and "bf16" keep V. "f16" takes exp2 by a parabola in packed arithmetic, "bf16" by the special
    unit, which then bounds the speed.

    >>> import jax.numpy as jnp
    >>> q = jnp.ones((1, 6, 2, 128), jnp.bfloat16)
    >>> attention_int8(q, q, q, valid_keys=5).shape
    (1, 6, 2, 128)
    """
    valid_keys = _check(q, k, v, valid_keys, config)
    _check_before(q, k, before)
    for name, value, allowed in (("pv", pv, PV), ("prologue", prologue, PROLOGUES)):
        if value not in allowed:
            raise ValueError(f'{OP}: {name} is "{value}", expected one of {tuple(allowed)}')
    if prologue == "fused":
        checks.check_array(OP, 'q (for prologue="fused")', _memory(q), jnp.bfloat16)
    else:
        q, k, v = (as_array(x) for x in (q, k, v))
    quantize = functools.partial(PROLOGUES[prologue], valid_keys=valid_keys, pv=pv, rotate=rotate)
    out, lse = _run(q, k, v, before, valid_keys, ("s8", pv), quantize, return_lse, config)
    if not return_lse:
        return out
    q, k = as_array(q), as_array(k)
    # The kernel saw scores without those of the mean key.
    mean = operands.existing(operands.positioned(k, before.k_norm, before), valid_keys).sum(1) / valid_keys
    queries = operands.positioned(q, before.q_norm, before)
    left_out = jnp.einsum("bsac,bac->bas", queries, mean, precision=lax.Precision.HIGHEST)
    return out, lse + left_out * HEAD**-0.5


def attention_bf16(
    q: Array,
    k: Array,
    v: Array,
    *,
    valid_keys: int | None = None,
    before: Before = NOTHING,
    return_lse: bool = False,
    config: AttentionConfig | None = None,
) -> Any:
    """The same kernel on bf16 operands: what quantizing is compared with. Arguments as `attention_int8`."""
    valid_keys = _check(q, k, v, valid_keys, config)
    _check_before(q, k, before)
    out, lse = _run(q, k, v, before, valid_keys, ("bf16", "bf16"), operands.as_bf16, return_lse, config)
    return (out, lse) if return_lse else out


def _run(
    q: Array | Columns,
    k: Array | Columns,
    v: Array | Columns,
    before: Before,
    valid_keys: int,
    kinds: tuple[str, str],
    prepare: Callable[..., Operands],
    with_lse: bool,
    config: AttentionConfig | None,
) -> tuple[Array, Array | None]:
    rows, heads = q.shape[1:3]
    queries = rows + -rows % 8
    if config is None:
        config = choose_config(queries, valid_keys, heads, kinds=kinds, kind=device_facts()[0])
    static = dict(heads=heads, queries=queries, valid_keys=valid_keys, config=config, with_lse=with_lse)

    def whole(q: Any, k: Any, v: Any, norms_and_rope: tuple[Any, ...]) -> tuple[Array, ...]:
        prepared = prepare(q, k, v, Before(*norms_and_rope, before.eps), config=config)
        prepared = prepared._replace(q=in_eights(prepared.q, axis=1))
        kernel = lambda *x: _present(kernel_sm90.run(Operands(*x), **static))
        emulated = lambda *x: _present(emulation.run(Operands(*x), **static))
        return lax.platform_dependent(*prepared, cuda=kernel, default=emulated)

    # One call a batch member: the kernel's grid is its own.
    out, *lse = jax.custom_batching.sequential_vmap(whole)(q, k, v, tuple(before[:3]))
    return out[:, :rows].astype(q.dtype), lse[0].reshape(q.shape[0], heads, queries)[..., :rows] if lse else None


def _present(results: tuple[Array | None, ...]) -> tuple[Array, ...]:
    return tuple(x for x in results if x is not None)


def _check(q: Any, k: Any, v: Any, valid_keys: int | None, config: AttentionConfig | None) -> int:
    for name, x in (("q", q), ("k", k), ("v", v)):
        checks.check_array(OP, name, _memory(x), *DTYPES)
        checks.check_rank(OP, name, x, 4)
        if 0 in x.shape:
            raise ValueError(f"{OP}: {name} is empty (shape {x.shape})")
        if x.shape[3] != HEAD:
            raise ValueError(f"{OP}: {name} has head dimension {x.shape[3]}, expected {HEAD}")
    checks.check_shape(OP, "k", k, (q.shape[0], k.shape[1], *q.shape[2:]))
    checks.check_shape(OP, "v", v, k.shape)
    valid_keys = k.shape[1] if valid_keys is None else valid_keys
    if not 0 < valid_keys <= k.shape[1]:
        raise ValueError(f"{OP}: valid_keys = {valid_keys} is not within 1..{k.shape[1]}")
    if config is not None:
        _check_config(config)
    return valid_keys


def _memory(x: Array | Columns) -> Array:
    return x.merged if isinstance(x, Columns) else x


def _check_before(q: Any, k: Any, before: Before) -> None:
    width = q.shape[2] * HEAD
    for name, vector in (("q_norm", before.q_norm), ("k_norm", before.k_norm)):
        if vector is not None:
            checks.check_array(OP, f"before.{name}", vector, jnp.float32)
            checks.check_shape(OP, f"before.{name}", vector, (width,))
            checks.check_finite(OP, f"before.{name}", vector)
    for table in before.rope or ():
        checks.check_array(OP, "before.rope", table, jnp.float32)
        checks.check_shape(OP, "before.rope", table, (q.shape[1], HEAD))
        checks.check_shape(OP, "k (rotated as q)", k, q.shape)


def _check_config(config: AttentionConfig) -> None:
    checks.check_multiple(OP, "config.block_kv", config.block_kv, 32)
    if config.block_kv > 256:
        raise ValueError(f"{OP}: config.block_kv = {config.block_kv}, expected at most 256: one wgmma")
    if config.stages < 1 or config.cluster not in (1, 2):
        raise ValueError(f"{OP}: config has stages {config.stages}, cluster {config.cluster}: expected ≥ 1 and 1 or 2")
    if not 0 <= config.linear <= LINEAR_GROUPS or not 0 <= config.tail <= 3:
        raise ValueError(f"{OP}: config has linear {config.linear}, tail {config.tail}: expected 0..4 and 0..3")
    if config.promote < 0:
        raise ValueError(f"{OP}: config.promote = {config.promote}, expected at least 0")
