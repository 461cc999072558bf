"""The public functions: check, choose, run."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels import checks
from pallas_kernels.mosaic import device_facts, in_eights
from pallas_kernels.nvfp4_matmul import kernel_sm90, staged_sm90, warps_sm90
from pallas_kernels.nvfp4_matmul.checks import check_weight
from pallas_kernels.nvfp4_matmul.config import (
    CHUNK,
    MOST_TOKENS,
    SHARED_MEMORY,
    WARP_TOKENS,
    FusedConfig,
    choose_config,
    eights,
    warp_bytes,
)
from pallas_kernels.nvfp4_matmul.emulation import SCALE_BACK, emulate, emulate_warps
from pallas_kernels.nvfp4_matmul.expand import expand_to_bf16

ROWS = kernel_sm90.DECODERS * kernel_sm90.ROWS


def nvfp4_matmul(
    x: Array,
    packed: Array,
    block_scale: Array,
    tensor_scale: Array,
    *,
    bias: Array | None = None,
    out_dtype: Any = jnp.bfloat16,
    config: FusedConfig | None = None,
) -> Array:
    """x @ w.T + bias for a weight in NVFP4 and at most 208 tokens; the weight is decoded in registers, exactly.

    x bf16 (m, k); packed u8 (n, k/2), low nibble first; block_scale e4m3 (n, k/16), normal numbers; tensor_scale f32 ()
    or (n,); bias f32 (n,). k a multiple of 256, n of 128. For more tokens expand the weight: `expand_to_int8`.

    >>> import jax.numpy as jnp
    >>> packed, scale = jnp.full((128, 128), 0x22, jnp.uint8), jnp.ones((128, 16), jnp.float8_e4m3fn)
    >>> nvfp4_matmul(jnp.ones((3, 256), jnp.bfloat16), packed, scale, jnp.float32(0.5))[0, 0]
    Array(128, dtype=bfloat16)
    """
    _check("nvfp4_matmul", x, packed, block_scale, tensor_scale, bias)
    run = functools.partial(_run, out_dtype=jnp.dtype(out_dtype), config=config)
    return jax.custom_batching.sequential_vmap(run)(x, packed, block_scale, tensor_scale, bias)


def _run(x, packed, block_scale, tensor_scale, bias, *, out_dtype, config) -> Array:
    (m, k), n = x.shape, packed.shape[0]
    config = config or choose_config(m, k, n, device_facts()[0])
    _check_config(config, m, k, n)
    if config.tiles:
        return _run_warps(x, packed, block_scale, tensor_scale, bias, out_dtype, config)
    # The other side of a wgmma is a multiple of eight wide.
    padded = in_eights(x)
    factor = tensor_scale * SCALE_BACK
    if config.inside and out_dtype == jnp.bfloat16:
        vectors = jnp.broadcast_to(factor, (n,)), jnp.zeros(n) if bias is None else bias
        run = functools.partial(kernel_sm90.run_inside, config=config)
        return lax.platform_dependent(padded, packed, block_scale, *vectors, cuda=run, default=_emulate_inside)[:m]
    config = dataclasses.replace(config, inside=False)
    parts = lax.platform_dependent(
        padded,
        packed,
        block_scale,
        cuda=functools.partial(kernel_sm90.run, config=config),
        default=lambda *operands: jnp.stack(
            [emulate(*operands)] + [jnp.zeros((n, padded.shape[0]))] * (config.parts - 1)
        ),
    )
    y = parts.sum(0).T[:m] * factor
    return (y if bias is None else y + bias[None]).astype(out_dtype)


def _run_warps(x, packed, block_scale, tensor_scale, bias, out_dtype, config) -> Array:
    """No other kernel before or after: a scale is not made a vector, nor tokens a multiple of eight."""
    if out_dtype not in (jnp.bfloat16, jnp.float32):
        return _run_warps(x, packed, block_scale, tensor_scale, bias, jnp.float32, config).astype(out_dtype)
    vectors = [jnp.atleast_1d(tensor_scale)] + ([] if bias is None else [bias])
    kernel = staged_sm90 if config.staged else warps_sm90
    run, emulated = (functools.partial(f, out_dtype=out_dtype, config=config) for f in (kernel.run, _emulate_warps))
    return lax.platform_dependent(x, packed, block_scale, *vectors, cuda=run, default=emulated)


def _emulate_warps(x, packed, block_scale, tensor_scale, *bias, out_dtype, config) -> Array:
    y = emulate_warps(x, packed, block_scale, config.groups) * (tensor_scale * SCALE_BACK)[None]
    return (y + bias[0][None] if bias else y).astype(out_dtype)


def _emulate_inside(x, packed, block_scale, factor, bias) -> Array:
    return (emulate(x, packed, block_scale).T * factor[None] + bias[None]).astype(jnp.bfloat16)


def _check_config(config: FusedConfig, m: int, k: int, n: int) -> None:
    if config.ahead < 0:
        raise ValueError(f"nvfp4_matmul: config.ahead = {config.ahead}, expected 0 or more")
    _check_tiles(config, m) if config.tiles else _check_parts(config, m, k, n)


def _check_tiles(config: FusedConfig, m: int) -> None:
    op = "nvfp4_matmul"
    if m > WARP_TOKENS or config.parts > 1 or (config.cluster > 1 and not config.staged):
        raise ValueError(
            f"{op}: config.tiles = {config.tiles} for {m} tokens: needs at most {WARP_TOKENS}, parts 1, and cluster 1 "
            "unless staged"
        )
    if eights(m) % config.cluster:
        raise ValueError(f"{op}: config.cluster = {config.cluster} does not divide {eights(m)} times eight tokens")
    if config.groups not in (1, 2) or config.stages % config.groups:
        raise ValueError(f"{op}: config.groups = {config.groups}, expected 1, or 2 with even stages")
    if (size := warp_bytes(m, config)) > SHARED_MEMORY:
        raise ValueError(f"{op}: config.tiles = {config.tiles} takes {size} bytes of shared memory a CTA")


def _check_parts(config: FusedConfig, m: int, k: int, n: int) -> None:
    op = "nvfp4_matmul"
    if k // CHUNK % config.parts or (config.inside and config.parts > 1):
        parts = "1 with inside" if config.inside else f"a divisor of k / {CHUNK} = {k // CHUNK}"
        raise ValueError(f"{op}: config.parts = {config.parts}, expected {parts}")
    if config.groups > 1 and (config.groups > 2 or min(config.stages, k // CHUNK // config.parts) % 2):
        raise ValueError(f"{op}: config.groups = {config.groups}, expected 1, or 2 with even stages")
    if n // ROWS % config.cluster or (config.cluster > 1 and m % (8 * config.cluster)):
        raise ValueError(f"{op}: config.cluster = {config.cluster} divides neither n / {ROWS} nor the tokens by eights")


def w4a4_matmul(
    x_packed: Array,
    x_block_scale: Array,
    x_tensor_scale: Array,
    w_packed: Array,
    w_block_scale: Array,
    w_tensor_scale: Array,
    *,
    bias: Array | None = None,
    out_dtype: Any = jnp.bfloat16,
) -> Array:
    """x @ w.T + bias with both in NVFP4. Every product is exact, sums are f32: what a Blackwell tensor core computes.

    Scales as in `nvfp4_matmul`, for x too: x_tensor_scale f32 () or (m,).
    """
    check_weight("w4a4_matmul", x_packed, x_block_scale, "x_")
    x = expand_to_bf16(x_packed, x_block_scale)
    if _decodes(x, w_packed):
        y = nvfp4_matmul(x, w_packed, w_block_scale, w_tensor_scale, out_dtype=jnp.float32)
    else:
        check_weight("w4a4_matmul", w_packed, w_block_scale, "w_")
        w = expand_to_bf16(w_packed, w_block_scale)
        y = lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32) * w_tensor_scale
    y = y * (x_tensor_scale if x_tensor_scale.ndim == 0 else x_tensor_scale[:, None])
    return (y if bias is None else y + bias[None]).astype(out_dtype)


def _decodes(x: Array, packed: Array) -> bool:
    """Whether the fused kernel takes this case."""
    return x.shape[0] <= MOST_TOKENS and x.shape[1] % CHUNK == 0 and packed.shape[0] % ROWS == 0


def _check(op, x, packed, block_scale, tensor_scale, bias) -> None:
    checks.check_array(op, "x", x, jnp.bfloat16)
    checks.check_rank(op, "x", x, 2)
    checks.check_rows(op, "x", x)
    check_weight(op, packed, block_scale)
    (m, k), n = x.shape, packed.shape[0]
    if m > MOST_TOKENS:
        raise ValueError(f"{op}: x has {m} rows, expected at most {MOST_TOKENS}: for more, expand the weight")
    checks.check_multiple(op, "k", k, CHUNK)
    checks.check_multiple(op, "n", n, ROWS)
    checks.check_shape(op, "packed", packed, (n, k // 2))
    checks.check_shape(op, "tensor_scale", tensor_scale, (), (n,))
    for name, value in (("tensor_scale", tensor_scale), ("bias", bias)):
        if value is not None:
            checks.check_array(op, name, value, jnp.float32)
            checks.check_finite(op, name, value)
    if bias is not None:
        checks.check_shape(op, "bias", bias, (n,))
