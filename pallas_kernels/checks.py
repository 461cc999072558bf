"""Refusals. Every message names the argument, what it is and what it has to be."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ALIGNMENT = 16


def check_array(op: str, name: str, x: Any, *allowed: Any) -> None:
    """Exact dtypes: the hardware reads u8 as s8 without a word. Where values are at hand, also their layout."""
    if x.dtype not in [jnp.dtype(dtype) for dtype in allowed]:
        names = " or ".join(jnp.dtype(dtype).name for dtype in allowed)
        raise TypeError(f"{op}: {name} is {x.dtype.name}, expected {names}")
    if isinstance(x, np.ndarray) and not x.flags.c_contiguous:
        raise ValueError(f"{op}: {name} has strides {x.strides} for shape {x.shape}, expected a contiguous array")
    if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer):
        _check_memory(op, name, x)


def _check_memory(op: str, name: str, x: jax.Array) -> None:
    devices = len(x.sharding.device_set)
    if devices > 1 and not x.sharding.is_fully_replicated:
        raise ValueError(f"{op}: {name} is split over {devices} devices; call {op} inside jax.shard_map, on the parts")
    order = x.format.layout.major_to_minor if x.format.layout is not None else tuple(range(x.ndim))
    if tuple(order) != tuple(range(x.ndim)):
        raise ValueError(f"{op}: {name} lies in memory with its axes in the order {tuple(order)}, expected row by row")
    # Views of another framework's memory may begin anywhere.
    if devices == 1 and x.size and x.unsafe_buffer_pointer() % ALIGNMENT:
        raise ValueError(f"{op}: {name} does not begin at a multiple of {ALIGNMENT} bytes, as TMA needs")


def check_shape(op: str, name: str, x: Any, *shapes: tuple[int, ...]) -> None:
    if x.shape not in shapes:
        raise ValueError(f"{op}: {name} has shape {x.shape}, expected {' or '.join(map(str, shapes))}")


def check_rank(op: str, name: str, x: Any, rank: int) -> None:
    if x.ndim != rank:
        raise ValueError(f"{op}: {name} has shape {x.shape}, expected {rank} axes")


def check_multiple(op: str, name: str, size: int, of: int) -> None:
    if size <= 0 or size % of:
        raise ValueError(f"{op}: {name} = {size}, expected a positive multiple of {of}")


def check_rows(op: str, name: str, x: Any) -> None:
    if x.shape[0] == 0:
        raise ValueError(f"{op}: {name} has no rows (shape {x.shape})")


def check_finite(op: str, name: str, x: Any) -> None:
    """A scale that is NaN or infinite would spoil whole rows. Checked where values are at hand, not in a trace."""
    if isinstance(x, jax.core.Tracer | jax.ShapeDtypeStruct):
        return
    if not np.isfinite(np.asarray(x, np.float32)).all():
        raise ValueError(f"{op}: {name} holds a value that is not finite")
