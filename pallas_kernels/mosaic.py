"""What every kernel asks of Mosaic GPU, in words that hold for jax 0.10 and 0.11 alike."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

WARPGROUP = 128  # threads; what Pallas calls a thread here is one warpgroup
H200_SMS = 132
CTA_BYTES = 232448  # of shared memory that a CTA can have on Hopper


def shared_bytes(scratch: dict[str, Any]) -> int:
    """Of its arrays in shared memory, without barriers."""
    arrays = [ref for ref in scratch.values() if not isinstance(ref, plgpu.Barrier)]
    return sum(math.prod(ref.shape) * jnp.dtype(ref.dtype).itemsize for ref in arrays)


def launch(
    body: Callable[..., None],
    out_type: Any,
    *,
    sms: int,
    warpgroups: int,
    cluster: int = 1,
    approx_math: bool = False,
    interpret: Any = None,
) -> Callable[..., Any]:
    """A persistent kernel: one CTA an SM, axes "grid", "cluster" and "wg"."""
    return plgpu.kernel(
        body,
        out_type=out_type,
        grid=(sms // cluster,),
        grid_names=("grid",),
        cluster=(cluster,),
        cluster_names=("cluster",),
        num_threads=warpgroups,
        thread_name="wg",
        # The default differs between the two versions.
        compiler_params=plgpu.CompilerParams(
            approx_math=approx_math, lowering_semantics=plgpu.LoweringSemantics.Warpgroup
        ),
        **({} if interpret is None else {"interpret": interpret}),
    )


def launch_grid(
    body: Callable[..., None],
    out_type: Any,
    *,
    grid: dict[str, int],
    warpgroups: int,
    cluster: int = 1,
    interpret: Any = None,
) -> Callable[..., Any]:
    """One CTA a grid point, as many on an SM as fit; the grid's axes by name, and "wg". A cluster has its own axis."""
    clustered = {} if cluster == 1 else {"cluster": (cluster,), "cluster_names": ("cluster",)}
    return plgpu.kernel(
        body,
        out_type=out_type,
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        num_threads=warpgroups,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        **clustered,
        **({} if interpret is None else {"interpret": interpret}),
    )


def launch_in_place(
    body: Callable[..., None],
    places: tuple[jax.Array, ...],
    *others: Any,
    grid: dict[str, int],
    warpgroups: int,
) -> Any:
    """As `launch_grid`, of a kernel that writes to its first arguments: where they are not needed any more, in place.

    Returns them as they are then. A result with memory of its own is one more, `jax.lax.empty` before.
    """
    call = pl.kernel(  # jax 0.10 does not let plgpu.kernel write to what it is given
        body,
        out_type=(),
        name=type(body).__name__,
        mesh=plgpu.Mesh(grid=tuple(grid.values()), grid_names=tuple(grid), num_threads=warpgroups, thread_name="wg"),
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )
    # Not with refs of its own and a result beside them: jax 0.10 cannot do that under custom_vmap.
    return pl.run_state(lambda refs: call(*refs, *others))(places)


def swizzled(columns: int, dtype: Any) -> tuple[Any, ...]:
    """Shared-memory layout of a matrix that TMA fills and wgmma reads: rows of at most 128 bytes, swizzled."""
    bits = 8 * jnp.dtype(dtype).itemsize
    swizzle = plgpu.find_swizzle(columns * bits)
    return (plgpu.TilingTransform((8, 8 * swizzle // bits)), plgpu.SwizzleTransform(swizzle))


_INDEX = inspect.signature(plgpu.load).parameters.get("idx")


def load(ref: Any, layout: Any) -> jax.Array:
    """A shared-memory ref into registers, in a named layout. jax 0.10 wants an index, 0.12 has none."""
    index_is_required = _INDEX is not None and _INDEX.default is inspect.Parameter.empty
    return plgpu.load(ref, *([()] if index_is_required else []), layout=layout)


def in_eights(x: jax.Array, axis: int = 0) -> jax.Array:
    """Rows up to a multiple of eight, with zeros: TMA moves swizzled rows by eights."""
    missing = -x.shape[axis] % 8
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)]) if missing else x


@functools.cache
def device_facts() -> tuple[str, int]:
    """(kind, number of SMs) of the GPU programs are built for; without one, those of the GPU this was tuned on."""
    if jax.default_backend() != "gpu":
        return "NVIDIA H200", H200_SMS
    device = jax.devices()[0]
    return device.device_kind, device.core_count


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)
