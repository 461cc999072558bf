"""The public function: check, choose a configuration, run."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels import checks
from pallas_kernels.add_deltas import kernel_sm90
from pallas_kernels.add_deltas.config import TILE, AddDeltasConfig, choose_config
from pallas_kernels.add_deltas.emulation import emulate, emulate_many
from pallas_kernels.mosaic import device_facts

OP = "add_deltas"
MOST = 2**31  # bytes of a delta: in the kernel a row and what is in it are 32 bits


def add_deltas(x: Array, codes: Array, scale: Array, places: Array, *, config: AddDeltasConfig | None = None) -> Array:
    """`x + Σ codes[place] · scale[place]` over places, added in their order in f32 and rounded to bf16 once.

    x bf16 (m, k), k a multiple of 512. codes s8 (slots, m, k), scale f32 (slots, m), places s32 (layers,): all of a
    store, and which of its slots to add. A place that is none of them counts as the nearest.

    >>> import jax.numpy as jnp
    >>> codes, scale = jnp.full((3, 2, 512), 3, jnp.int8), jnp.asarray([[0.5] * 2, [1.0] * 2, [2.0] * 2])
    >>> float(add_deltas(jnp.ones((2, 512), jnp.bfloat16), codes, scale, jnp.array([1, 2]))[0, 0])
    10.0
    """
    checks.check_array(OP, "x", x, jnp.bfloat16)
    checks.check_array(OP, "codes", codes, jnp.int8)
    checks.check_array(OP, "scale", scale, jnp.float32)
    checks.check_array(OP, "places", places, jnp.int32)
    checks.check_rank(OP, "x", x, 2)
    checks.check_rank(OP, "codes", codes, 3)
    checks.check_rank(OP, "places", places, 1)
    for name, each in (("x", x), ("codes", codes), ("places", places)):
        checks.check_rows(OP, name, each)
    checks.check_multiple(OP, "k", x.shape[1], TILE)
    checks.check_shape(OP, "codes", codes, (codes.shape[0], *x.shape))
    checks.check_shape(OP, "scale", scale, codes.shape[:2])
    if x.size >= MOST:
        raise ValueError(f"{OP}: x has shape {x.shape}, expected fewer than {MOST} values")
    config = config or choose_config(x.shape[1], places.shape[0], device_facts()[0])
    return _run(config)(x, codes, scale, places)


@functools.cache
def _run(config: AddDeltasConfig) -> Any:
    """The kernel where there is a GPU. For several at once XLA's pass: a loop over them would copy each one's codes."""

    @jax.custom_batching.custom_vmap
    def run(*operands: Array) -> Array:
        kernel = functools.partial(kernel_sm90.run, config=config)
        return lax.platform_dependent(*operands, cuda=kernel, default=emulate)

    @run.def_vmap
    def _several(size: int, batched: list[bool], *operands: Array) -> tuple[Array, bool]:
        return emulate_many(*operands, batched=batched), True

    return run
