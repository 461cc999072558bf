"""The public function: check, choose a configuration, run, and put the results in shape."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels import checks
from pallas_kernels.mosaic import CTA_BYTES, device_facts, in_eights, shared_bytes
from pallas_kernels.quantize_rows import kernel_sm90, nvfp4_sm90, warps_sm90
from pallas_kernels.quantize_rows.config import GROUP, QuantizeRowsConfig, choose_config
from pallas_kernels.quantize_rows.emulation import emulate
from pallas_kernels.quantize_rows.spec import Spec

OP = "quantize_rows"
ACTIVATIONS = (None, "gelu_tanh")
NORMS = (None, "layer", "rms")
FORMS = ("int8", "nvfp4")


class QuantizedRows(NamedTuple):
    codes: Array  # s8 (m, k); in NVFP4 u8 (m, k/2), low nibble first
    scale: Array  # f32 (m,), or (m, k/128) with group=128
    total: Array  # f32 (m,): Σ|x| of what is quantized, before the rotation
    largest: Array  # f32 (m,): max|x|, likewise
    block_scale: Array | None = None  # e4m3 (m, k/16), in NVFP4


def quantize_rows(
    x: Array,
    *,
    norm: str | None = None,
    eps: float = 1e-6,
    factor: Array | None = None,
    offset: Array | None = None,
    activation: str | None = None,
    rotate: bool = False,
    group: int | None = None,
    form: str = "int8",
    config: QuantizeRowsConfig | None = None,
) -> QuantizedRows:
    """`activation(norm(x) · factor + offset)`, rotated by Hadamard-128 if asked, in INT8; every part optional.

    x bf16 (m, k), k a multiple of 128. norm "layer" or "rms", without weights: those are part of factor and offset, f32
    (k,), as modulation and smoothing are. What is rotated is rounded to bf16 first, as an unfused one would be. One
    scale a row, or with group=128 one per 128 columns. Codes are symmetric, rounded half to even; zeros have scale 1.

    form "nvfp4" gives four-bit codes with an e4m3 scale per 16 columns, under an outer scale a row: that of a whole
    matrix would take another pass.

    >>> import jax.numpy as jnp
    >>> q = quantize_rows(jnp.full((2, 128), -2.0, jnp.bfloat16))
    >>> int(q.codes[0, 0]), float(q.total[0]), float(q.largest[0])
    (-127, 256.0, 2.0)
    """
    checks.check_array(OP, "x", x, jnp.bfloat16)
    checks.check_rank(OP, "x", x, 2)
    checks.check_rows(OP, "x", x)
    checks.check_multiple(OP, "k", x.shape[1], GROUP)
    if group not in (None, GROUP):
        raise ValueError(f"{OP}: group is {group}, expected None (one scale a row) or {GROUP}")
    if form not in FORMS:
        raise ValueError(f'{OP}: form is "{form}", expected one of {FORMS}')
    if form == "nvfp4" and group is not None:
        raise ValueError(f"{OP}: group is {group}, expected None: NVFP4 has groups of its own")
    if activation not in ACTIVATIONS:
        raise ValueError(f'{OP}: activation is "{activation}", expected one of {ACTIVATIONS}')
    if norm not in NORMS:
        raise ValueError(f'{OP}: norm is "{norm}", expected one of {NORMS}')
    for name, vector in (("factor", factor), ("offset", offset)):
        if vector is not None:
            checks.check_array(OP, name, vector, jnp.float32)
            checks.check_shape(OP, name, vector, (x.shape[1],))
            checks.check_finite(OP, name, vector)
    affine = factor is not None or offset is not None
    if affine:
        factor = jnp.ones(x.shape[1]) if factor is None else factor
        offset = jnp.zeros(x.shape[1]) if offset is None else offset
    spec = Spec(rotate, activation, group is not None, norm, eps, affine, form)
    run = functools.partial(_run, spec=spec, config=config)
    return QuantizedRows(*jax.custom_batching.sequential_vmap(run)(x, factor, offset))


def _run(x: Array, factor: Array | None, offset: Array | None, *, spec: Spec, config) -> tuple[Array, ...]:
    config = config or choose_config(x.shape[1], spec, device_facts()[0])
    kernel = functools.partial(run_kernel, spec=spec, config=config)
    return lax.platform_dependent(x, factor, offset, cuda=kernel, default=functools.partial(emulate, spec=spec))


def run_kernel(
    x: Array,
    factor: Array | None = None,
    offset: Array | None = None,
    *,
    spec: Spec,
    config: QuantizeRowsConfig,
    interpret: Any = None,
) -> tuple[Array, ...]:
    """The kernel, and its side results from the order it computes them in to one row a token."""
    if config.warps:
        return warps_sm90.run(x, factor, offset, spec=spec, config=config)
    (m, k), rows, split = x.shape, config.rows, config.split
    x = in_eights(x)
    kind = nvfp4_sm90.Nvfp4Kernel if spec.form == "nvfp4" else kernel_sm90.Kernel
    kernel = kind(x.shape[0] * split, k // split, spec, config)
    if (size := shared_bytes(kernel.scratch)) > CTA_BYTES:
        raise ValueError(
            f"{OP}: config.rows = {rows} parts of {kernel.k} columns take {size} bytes of shared memory, expected at "
            f"most {CTA_BYTES}"
        )
    codes, scale, total, largest, *bits = kernel_sm90.launch(kernel, x, factor, offset, interpret)

    def per_token(vector: Array) -> Array:
        """Every part of a token has the token's."""
        return vector[::split][:m]

    def per_group(scales: Array) -> Array:
        """(blocks, tiles, 64): tile row `rows · g + r` is group g of row r."""
        blocks, tiles, _ = scales.shape
        by_row = scales.reshape(blocks, tiles, -1, rows).transpose(0, 3, 1, 2).reshape(blocks * rows, -1)
        return by_row[: m * split, : k // split // GROUP].reshape(m, k // GROUP)

    vectors = (per_group if spec.grouped else per_token)(scale), per_token(total), per_token(largest)
    codes = codes.reshape(x.shape[0], -1)[:m]
    if not bits:
        return codes, *vectors
    packed = lax.bitcast_convert_type(codes, jnp.uint8).reshape(m, k // 2)
    return packed, *vectors, nvfp4_sm90.by_row(bits[0], kernel, m * split).reshape(m, -1)
