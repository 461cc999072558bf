"""x · factor + offset by channel, for a tile whose rows are different channels.

Pallas has no word for "row r of this matrix is row r // 8 of that one", so this is written a level below it, where each
thread knows which elements its registers hold. The vectors stay in the first-level cache.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.mosaic.gpu import fragmented_array as fa
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, vector


def channel_of(row: ir.Value, column: ir.Value, first: ir.Value, *, rows: int, split: int, padded_k: int) -> ir.Value:
    """Where the factor of a tile's element is: tile row `rows · g + r` is group g of part r % split."""
    group, part = arith.divui(row, _index(rows)), arith.remui(arith.remui(row, _index(rows)), _index(split))
    inside = arith.addi(arith.muli(group, _index(128)), column)
    return arith.addi(arith.addi(arith.muli(part, _index(padded_k)), first), inside)


def scale(x: Array, first: Array, factor_gmem: Any, offset_gmem: Any, channel_of: Callable[..., ir.Value]) -> Array:
    """`first` is the channel of the tile's corner, within a part."""

    @plgpu.inline_mgpu(
        arg_types=(plgpu.Layout.WGMMA, plgpu.Layout.WG_SPLAT, plgpu.RefType(), plgpu.RefType()),
        return_type=plgpu.ShapeDtypeStruct(x.shape, jnp.float32, layout=plgpu.Layout.WGMMA),
    )
    def inner(ctx, x, first, factor_gmem, offset_gmem):
        (start,) = first.registers.flat
        start = arith.index_cast(ir.IndexType.get(), start)
        out = np.empty_like(x.registers)
        places = x.layout.thread_idxs(x.shape)
        for index, (row, column) in zip(np.ndindex(x.registers.shape), places, strict=True):
            channel = channel_of(row, column, start)
            pair = x.registers[index]
            factor, offset = (vector.load(pair.type, ref, [channel]) for ref in (factor_gmem, offset_gmem))
            out[index] = arith.addf(arith.mulf(pair, factor), offset)
        return fa.FragmentedArray(_registers=out, _layout=x.layout, _is_signed=None)

    return inner(x, first, factor_gmem, offset_gmem)


def _index(value: int) -> ir.Value:
    return arith.constant(ir.IndexType.get(), ir.IntegerAttr.get(ir.IndexType.get(), value))
