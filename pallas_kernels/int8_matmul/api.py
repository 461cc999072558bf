"""The public function: check, choose a configuration, run."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels import checks
from pallas_kernels.int8_matmul import kernel_sm90
from pallas_kernels.int8_matmul.config import TILE_K, Int8MatmulConfig, choose_config
from pallas_kernels.int8_matmul.emulation import emulate
from pallas_kernels.mosaic import device_facts

OP = "int8_matmul"
ACTIVATIONS = (None, "gelu_tanh")


def int8_matmul(
    x: Array,
    w: Array,
    x_scale: Array,
    w_scale: Array,
    *,
    bias: Array | None = None,
    activation: str | None = None,
    gate: Array | None = None,
    residual: Array | None = None,
    out_dtype: Any = jnp.bfloat16,
    config: Int8MatmulConfig | None = None,
) -> Array:
    """`residual + gate · activation(x @ w.T · x_scale · w_scale + bias)`, each part but the product optional; no gate
    without a residual.

    x s8 (m, k); w s8 (n, k); w_scale f32 (n,); x_scale f32 (m,), or (m, k/128) for one scale per 128 of k. bias and
    gate f32 (n,); residual (m, n) in `out_dtype`. Any m; k and n multiples of 128. Products are exact in s32.

    >>> import jax.numpy as jnp
    >>> x, w = jnp.ones((2, 128), jnp.int8), jnp.ones((128, 128), jnp.int8)
    >>> int8_matmul(x, w, jnp.full(2, 0.5), jnp.ones(128))[0, 0]
    Array(64, dtype=bfloat16)
    """
    _check(x, w, x_scale, w_scale, bias, activation, gate, residual, out_dtype)
    run = functools.partial(_run, activation=activation, out_dtype=jnp.dtype(out_dtype), config=config)
    return jax.custom_batching.sequential_vmap(run)(x, w, x_scale, w_scale, bias, gate, residual)


def _run(x, w, x_scale, w_scale, bias, gate, residual, *, activation, out_dtype, config):
    (m, k), n = x.shape, w.shape[0]
    kind, sms = device_facts()
    if config is None:
        config = choose_config(m, k, n, grouped=x_scale.ndim == 2, gated=residual is not None, kind=kind)
    kernel = functools.partial(kernel_sm90.run, activation=activation, out_dtype=out_dtype, config=config, sms=sms)
    return lax.platform_dependent(
        *(x, w, x_scale, w_scale, bias, gate, residual),
        cuda=kernel,
        default=functools.partial(emulate, activation=activation, out_dtype=out_dtype),
    )


def _check(x, w, x_scale, w_scale, bias, activation, gate, residual, out_dtype) -> None:
    for name, operand in (("x", x), ("w", w)):
        checks.check_array(OP, name, operand, jnp.int8)
        checks.check_rank(OP, name, operand, 2)
        checks.check_rows(OP, name, operand)
    (m, k), n = x.shape, w.shape[0]
    checks.check_multiple(OP, "k", k, TILE_K)
    checks.check_multiple(OP, "n", n, 128)
    checks.check_shape(OP, "w", w, (n, k))
    checks.check_shape(OP, "x_scale", x_scale, (m,), (m, k // TILE_K))
    for name, vector in (("w_scale", w_scale), ("bias", bias), ("gate", gate)):
        if vector is not None:
            checks.check_shape(OP, name, vector, (n,))
    for name, scale in (("x_scale", x_scale), ("w_scale", w_scale), ("bias", bias), ("gate", gate)):
        if scale is not None:
            checks.check_array(OP, name, scale, jnp.float32)
            checks.check_finite(OP, name, scale)
    _check_tail(activation, gate, residual, out_dtype, (m, n))


def _check_tail(activation, gate, residual, out_dtype, shape) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f'{OP}: activation is "{activation}", expected one of {ACTIVATIONS}')
    if jnp.dtype(out_dtype) not in (jnp.bfloat16, jnp.float16):
        raise TypeError(f"{OP}: out_dtype is {jnp.dtype(out_dtype).name}, expected bfloat16 or float16")
    if gate is not None and residual is None:
        raise ValueError(f"{OP}: a gate is for what is added to a residual, and residual is missing")
    if residual is not None:
        checks.check_array(OP, "residual", residual, out_dtype)
        checks.check_shape(OP, "residual", residual, shape)
