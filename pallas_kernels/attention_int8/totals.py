"""Sums of 8-bit products moved to f32 in shared memory before the tensor cores lose much of them (`fp8_sums`).

Those with V; the sums of the weights, of one sign and so the first to lose, are moved every block, to registers.
A thread alone reads and writes its own. They lie where the output is staged at the end, in vectors of 16 bytes, those
of one number side by side over the threads: no two of a warp in one bank.
"""

import math

from pallas_kernels import ptx
from pallas_kernels.attention_int8.config import CONSUMERS
from pallas_kernels.attention_int8.tile import VECTOR, Tile
from pallas_kernels.mosaic import WARPGROUP
from pallas_kernels.ptx import Value

STRIDE = CONSUMERS * WARPGROUP * 4 * VECTOR  # bytes of one vector of every thread


def clear(tile: Tile, memory: Value) -> None:
    address = _address(memory)
    zero, lowest = ptx.constant(0.0, "f"), ptx.constant(-math.inf, "f")
    for i in range(tile.totals - 1):
        ptx.store_shared(address, i * STRIDE, [zero] * VECTOR)
    ptx.store_shared(address, (tile.totals - 1) * STRIDE, [lowest, lowest, zero, zero])


def promote(tile: Tile, memory: Value, o: list[Value], top: list[Value]) -> list[Value]:
    """Add O to the totals as of the maxima `top`. Returns an empty O."""
    address = _address(memory)
    sums = _sums(tile, address, o, top)
    for i in range(tile.totals - 1):
        ptx.store_shared(address, i * STRIDE, sums[VECTOR * i : VECTOR * (i + 1)])
    ptx.store_shared(address, (tile.totals - 1) * STRIDE, [*top, *top])
    return [ptx.constant(0.0, "f")] * len(sums) + o[len(sums) :]


def final(tile: Tile, memory: Value, o: list[Value], top: list[Value]) -> list[Value]:
    """O and the totals."""
    sums = _sums(tile, _address(memory), o, top)
    return sums + o[len(sums) :]


def _sums(tile: Tile, address: Value, o: list[Value], top: list[Value]) -> list[Value]:
    old = ptx.load_shared(address, (tile.totals - 1) * STRIDE)[:2]
    ratio = [ptx.exp2(ptx.subtract(old[r], top[r])) for r in (0, 1)]
    kept = [x for i in range(tile.totals - 1) for x in ptx.load_shared(address, i * STRIDE)]
    return [ptx.fma(x, ratio[i // 2 % 2], o[i]) for i, x in enumerate(kept)]


def _address(memory: Value) -> Value:
    """Of this thread's first vector. The warpgroups that compute are a CTA's first threads."""
    offset = ptx.op(f"mul.lo.s32 {{o[0]}}, {{i[0]}}, {4 * VECTOR};", "r", ("r", ptx.thread_in_cta()))
    return ptx.add(ptx.shared_address(memory), offset, "r")
