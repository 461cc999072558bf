"""The public function: check, choose a configuration, run."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels import checks
from pallas_kernels.keep_delta import kernel_sm90
from pallas_kernels.keep_delta.config import TILE, KeepDeltaConfig, choose_config
from pallas_kernels.keep_delta.emulation import emulate, emulate_many
from pallas_kernels.mosaic import device_facts

OP = "keep_delta"
MOST = 2**31  # values of a delta: in the kernel their places are 32 bits


class Kept(NamedTuple):
    """The output, the store with the delta in its place, and sums of magnitudes in f32."""

    y: Array  # bf16 (m, k)
    deltas: Array  # bf16 (slots, m, k)
    delta: Array  # Σ|y − x|
    x: Array  # Σ|x|
    change: Array  # Σ|(y − x) − old|, of the delta before it is rounded
    old: Array  # Σ|old|


def keep_delta(x: Array, y: Array, deltas: Array, place: Array, *, config: KeepDeltaConfig | None = None) -> Kept:
    """Keep `y − x`, rounded to bf16, as `deltas[place]`, and measure it beside x and what was kept there.

    x, y bf16 (m, k), k a multiple of 256, deltas bf16 (slots, m, k), place s32 (). In a program that needs x and the
    store no more, y takes the place of x and the store stays where it is, which is five passes over m × k in all. A
    place that is none counts as the nearest.

    >>> import jax.numpy as jnp
    >>> x, deltas = jnp.ones((2, 256), jnp.bfloat16), jnp.full((3, 2, 256), 2, jnp.bfloat16)
    >>> kept = keep_delta(x, 4 * x, deltas, jnp.int32(1))
    >>> kept.deltas[:, 0, 0].tolist(), [float(total) / 512 for total in kept[2:]]
    ([2.0, 3.0, 2.0], [3.0, 1.0, 1.0, 2.0])
    """
    for name, each, dtype in (("x", x, jnp.bfloat16), ("y", y, jnp.bfloat16), ("deltas", deltas, jnp.bfloat16)):
        checks.check_array(OP, name, each, dtype)
        checks.check_rank(OP, name, each, 3 if name == "deltas" else 2)
        checks.check_rows(OP, name, each)
    checks.check_array(OP, "place", place, jnp.int32)
    checks.check_multiple(OP, "k", x.shape[1], TILE)
    checks.check_shape(OP, "y", y, x.shape)
    checks.check_shape(OP, "deltas", deltas, (deltas.shape[0], *x.shape))
    checks.check_shape(OP, "place", place, ())
    if x.size >= MOST:
        raise ValueError(f"{OP}: x has shape {x.shape}, expected fewer than {MOST} values")
    config = config or choose_config(*x.shape, device_facts()[0])
    y, deltas, sums = _run(config)(x, y, deltas, place)
    return Kept(y, deltas, *sums)


@functools.cache
def _run(config: KeepDeltaConfig) -> Any:
    """The kernel where there is a GPU. For several at once XLA's passes: a loop would copy each one's store."""

    @jax.custom_batching.custom_vmap
    def run(*operands: Array) -> tuple[Array, Array, Array]:
        kernel = functools.partial(kernel_sm90.run, config=config)
        return lax.platform_dependent(*operands, cuda=kernel, default=emulate)

    @run.def_vmap
    def _several(size: int, batched: list[bool], *operands: Array) -> tuple[Any, Any]:
        return emulate_many(*operands, batched=batched), (True, True, True)

    return run
