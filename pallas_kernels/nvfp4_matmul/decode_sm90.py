"""NVFP4 to the bf16 operand of a wgmma, in the registers of the threads that multiply it.

A word of eight codes takes fifteen instructions:

- Masked and shifted, the codes i and i + 4, sixteen bits apart, become a pair of bf16 whose exponent field holds the
  two exponent bits of E2M1: the value times 2^-126, 0.5 included, as a subnormal. Its sign belongs seven bits above the
  magnitude, but stands next to it. One shift and one selection part them for two pairs at once; then a shift and a mask
  make each pair. That is eleven for four pairs.
- A block scale, e4m3 and normal, becomes a bf16 times 2^119 by a product and an addition. 448 just fits.
- One bf16x2 product a pair removes both, up to 2^-7, and is exact: code × scale has six significant bits.

Nothing moves between threads, because any order of K will do if both operands share it. A thread of a wgmma operand
holds, of each 64 columns, eight pairs of a row; here these are the 16 codes of one block. Of 256 columns the four lanes
of a row take a quarter each: eight words and, in one word, their four scales. `interleave` puts the columns of x into
that order.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.mosaic.gpu import fragmented_array as fa
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm

from pallas_kernels import ptx
from pallas_kernels.mosaic import swizzled
from pallas_kernels.nvfp4_matmul.config import CHUNK

ROWS = 64  # of a wgmma
WORDS = CHUNK // 8
BLOCKS = CHUNK // 16
SWIZZLED = swizzled(WORDS, jnp.int32)
EIGHT_ROWS = 8 * 4 * WORDS  # bytes of a chunk
PAIR = "0x81C081C0"  # the bits of a sign and a magnitude, twice
SELECT = "0xE4"  # the first operand where the third has ones, else the second


def decode(words: Any, scales: Any, chunk: int, span: int, depth: int) -> list[Array]:
    """Chunk `chunk` of words s32 (64, 32 · span) and scales s8 (64, 16 · span), in shared memory, to operands.

    They are bf16 (64, depth); columns in the order of `interleave`.
    """
    operand = plgpu.ShapeDtypeStruct((ROWS, depth), jnp.bfloat16, layout=plgpu.Layout.WGMMA)
    count = CHUNK // depth

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(SWIZZLED), ptx.REF), return_type=[operand] * count)
    def inner(_, words, scales):
        registers = np.empty((CHUNK // 8, 2), dtype=object)
        for place, (pair, factor) in thread_codes(words, scales, chunk, span).items():
            registers[place] = arith.mulf(_as_pair(pair), _as_pair(factor))
        shape = fa.WGMMA_LAYOUT.registers_shape((ROWS, depth))
        return [
            fa.FragmentedArray(_registers=part.reshape(shape), _layout=fa.WGMMA_LAYOUT, _is_signed=None)
            for part in registers.reshape(count, -1)
        ]

    return inner(words, scales)


def thread_codes(words: Any, scales: Any, chunk: int, span: int) -> dict[tuple[int, int], tuple[Any, Any]]:
    """This thread's pairs of codes and their scales, by eight columns of the operand and half: rows r and r + 8."""
    row, lane = ptx.thread_row(), ptx.thread_column()
    word_address, scale_address = _word_address(words, row, lane, span), _scale_address(scales, row, lane, span)
    found = {}
    for half in range(2):
        factors = _scales(*ptx.load_words(scale_address, BLOCKS * (chunk + 8 * span * half), 1))
        for unit in range(2):
            address = ptx.op(f"xor.b32 {{o[0]}}, {{i[0]}}, {16 * unit};", "r", ("r", word_address))
            for i, word in enumerate(ptx.load_words(address, EIGHT_ROWS * (chunk + span * half), 4)):
                factor, first = factors[2 * unit + i // 2], 4 * (4 * unit + i)
                found |= {(first + j, half): (pair, factor) for j, pair in enumerate(pairs(word))}
    return found


def pairs(word: Any) -> list[Any]:
    """Codes i and i + 4 of a word as two bf16, their values times 2^-126, for i = 0 to 3: `emulation.pair_bits`.

    Either selection leaves two codes in each half, their signs seven bits above their magnitudes; what else it leaves
    the masks remove.
    """
    low = _with_t(f"shl.b32 t, {{i[0]}}, 6; lop3.b32 {{o[0]}}, t, {{i[0]}}, 0x22002200, {SELECT};", word)
    high = _with_t(f"shr.u32 t, {{i[0]}}, 6; lop3.b32 {{o[0]}}, t, {{i[0]}}, 0x01DC01DC, {SELECT};", word)
    moved = [(low, 6), (low, 2), (high, 4), (high, 0)]
    return [_with_t(f"shl.b32 t, {{i[0]}}, {by}; and.b32 {{o[0]}}, t, {PAIR};", x) for x, by in moved]


def _scales(four: Any) -> list[Any]:
    """Four e4m3 as pairs of equal bf16, times 2^119: `emulation.scale_bits`."""
    clean = ptx.op("and.b32 {o[0]}, {i[0]}, 0x7F7F7F7F;", "r", ("r", four))
    text = "prmt.b32 t, {{i[0]}}, 0, 0x444{}; mad.lo.u32 {{o[0]}}, t, 0x100010, 0x77807780;"
    return [_with_t(text.format(i), clean) for i in range(4)]


def _with_t(text: str, *operands: Any) -> Any:
    """A few instructions with one result and a register `t` between."""
    return ptx.op("{{ .reg .b32 t; " + text + " }}", "r", *(("r", x) for x in operands))


def _word_address(words: Any, row: Any, lane: Any, span: int) -> Any:
    """Of the first sixteen bytes this thread takes of its first row; the other sixteen are at this address ^ 16.

    Rows of 128 bytes in eights, the chunks of eight rows one after the other, sixteen bytes at `place ^ row`.
    """
    text = (
        "{{ .reg .b32 a, b; and.b32 a, {i[1]}, 7; shl.b32 b, {i[2]}, 1; xor.b32 b, b, a; shl.b32 b, b, 4; "
        "mad.lo.u32 b, a, 128, b; shr.u32 a, {i[1]}, 3; mad.lo.u32 b, a, " + str(EIGHT_ROWS * span) + ", b; "
        "add.u32 {o[0]}, b, {i[0]}; }}"
    )
    return ptx.op(text, "r", ("r", ptx.shared_address(words)), ("r", row), ("r", lane))


def _scale_address(scales: Any, row: Any, lane: Any, span: int) -> Any:
    text = f"mad.lo.u32 t, {{i[1]}}, {BLOCKS * span}, {{i[0]}}; mad.lo.u32 {{o[0]}}, {{i[2]}}, 4, t;"
    return _with_t(text, ptx.shared_address(scales), row, lane)


def _as_pair(word: Any) -> Any:
    return llvm.bitcast(ir.VectorType.get((2,), ir.BF16Type.get()), word)
