"""NVFP4 weights to INT8 with one scale per output channel, on Hopper: one pass at about the speed of memory.

A block's sixteen codes take eight magnitudes, so each thread rounds a block's seven products of value and factor once,
keeps them as bytes of two registers (and their negatives in two more), and looks four codes up with one byte
permutation. About three instructions a code.

A warpgroup takes 64 rows by 256 codes. A thread holds, of each 64 codes of a row, the two words of one block, and makes
four words of them, which is how far apart the eight-bit operand layout keeps its threads: nothing moves between them.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu import fragmented_array as fa
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, memref, vector

from pallas_kernels.mosaic import ceil_div, launch_grid, load, swizzled
from pallas_kernels.nvfp4_matmul.config import CHUNK

ROWS = 64
WARPGROUPS = 2
WORDS, BLOCKS, OUT_WORDS = CHUNK // 8, CHUNK // 16, CHUNK // 4
MAGNITUDES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
ROUNDING = 12582912.0  # see quantize_rows/spec.py


def run(packed: Array, block_scale: Array, inverse: Array, *, interpret: Any = None) -> Array:
    """Codes s8 (n, k) of `code × block scale × inverse of the row`; inverse f32 (n,). k a multiple of 256."""
    n, k = packed.shape[0], 2 * packed.shape[1]
    call = launch_grid(
        Kernel(),
        jax.ShapeDtypeStruct((n, k // 4), jnp.int32),
        grid={"rows": ceil_div(n, ROWS), "columns": ceil_div(k, WARPGROUPS * CHUNK)},
        warpgroups=WARPGROUPS,
        interpret=interpret,
    )
    words = lax.bitcast_convert_type(packed.reshape(n, k // 8, 4), jnp.int32)
    out = call(words, lax.bitcast_convert_type(block_scale, jnp.int8), inverse)
    return lax.bitcast_convert_type(out, jnp.int8).reshape(n, k)


@dataclasses.dataclass(frozen=True)
class Kernel:
    def __call__(self, words_gmem, scales_gmem, inverse_gmem, out_gmem) -> None:
        pl.run_scoped(
            functools.partial(self._expand, words_gmem, scales_gmem, inverse_gmem, out_gmem),
            words_smem=plgpu.SMEM((WARPGROUPS, ROWS, WORDS), jnp.int32, transforms=swizzled(WORDS, jnp.int32)),
            scales_smem=plgpu.SMEM((WARPGROUPS, ROWS, BLOCKS), jnp.int8),
            inverse_smem=plgpu.SMEM((WARPGROUPS, ROWS), jnp.float32),
            out_smem=plgpu.SMEM((WARPGROUPS, ROWS, OUT_WORDS), jnp.int32, transforms=swizzled(WORDS, jnp.int32)),
            arrived=plgpu.Barrier(num_arrivals=3, num_barriers=WARPGROUPS),
            collective_axes="wg",
        )

    def _expand(self, words_gmem, scales_gmem, inverse_gmem, out_gmem, **scratch) -> None:
        wg = lax.axis_index("wg")
        chunk = lax.axis_index("columns") * WARPGROUPS + wg
        rows, columns = pl.ds(lax.axis_index("rows") * ROWS, ROWS), lambda size: pl.ds(chunk * size, size)
        mine = {name: ref.at[wg] for name, ref in scratch.items()}
        plgpu.copy_gmem_to_smem(words_gmem.at[rows, columns(WORDS)], mine["words_smem"], mine["arrived"])
        plgpu.copy_gmem_to_smem(scales_gmem.at[rows, columns(BLOCKS)], mine["scales_smem"], mine["arrived"])
        plgpu.copy_gmem_to_smem(inverse_gmem.at[rows], mine["inverse_smem"], mine["arrived"])
        plgpu.barrier_wait(mine["arrived"])
        words = load(mine["words_smem"], plgpu.Layout.WGMMA)
        inverse = load(mine["inverse_smem"], plgpu.Layout.WGMMA.reduce(1))
        mine["out_smem"][...] = look_up(words, mine["scales_smem"], inverse)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(mine["out_smem"], out_gmem.at[rows, columns(OUT_WORDS)])
        plgpu.wait_smem_to_gmem(0)


def look_up(words: Array, scales_smem: Any, inverse: Array) -> Array:
    """Words of eight codes s32 (64, 32) to words of four rounded values s32 (64, 64)."""

    @plgpu.inline_mgpu(
        arg_types=(plgpu.Layout.WGMMA, plgpu.RefType(), plgpu.Layout.WGMMA.reduce(1)),
        return_type=plgpu.ShapeDtypeStruct((ROWS, OUT_WORDS), jnp.int32, layout=plgpu.Layout.WGMMA_8BIT),
    )
    def inner(ctx, words, scales_smem, inverse):
        pairs = words.registers.reshape(WORDS // 8, 2)  # per 64 codes, per half of the rows: the words of a block
        factors = inverse.registers.reshape(2)
        out = np.empty((OUT_WORDS // 16, 2), dtype=object)
        for (tile, half), (row, column) in zip(np.ndindex(WORDS // 8, 2), _places(words.layout), strict=True):
            block = arith.divui(column, _index(2))
            scale = _e4m3(memref.load(scales_smem, [row, block]))
            table = _table(arith.mulf(scale, _element(factors[half], 0)))
            quads = [_quad(table, word, shift) for word in _elements(pairs[tile, half], 2) for shift in (0, 16)]
            out[tile, half] = vector.from_elements(ir.VectorType.get((4,), quads[0].type), quads)
        layout = fa.WGMMA_LAYOUT_8BIT
        shape = layout.registers_shape((ROWS, OUT_WORDS))
        return fa.FragmentedArray(_registers=out.reshape(shape), _layout=layout, _is_signed=True)

    return inner(words, scales_smem, inverse)


def _places(layout) -> list[tuple[ir.Value, ir.Value]]:
    """Row and first word of each register pair of this thread, tile by tile."""
    return list(layout.thread_idxs((ROWS, WORDS)))


def _table(factor: ir.Value) -> tuple[ir.Value, ...]:
    """Bytes 0, q(0.5), …, q(6) in two registers, and their negatives in two more, for q(v) = round(v · factor)."""
    zero = _int(0)
    registers = []
    for sign in (1.0, -1.0):
        q = [zero] + [_round(factor, sign * magnitude) for magnitude in MAGNITUDES]
        registers += [_bytes(q[:4]), _bytes(q[4:])]
    return tuple(registers)


def _quad(table: tuple[ir.Value, ...], word: ir.Value, shift: int) -> ir.Value:
    """The four values of the codes in 16 bits of a word, a byte each."""
    codes = arith.shrui(word, _int(shift)) if shift else word
    magnitude = arith.andi(codes, _int(0x7777))
    positive, negative = _permute(*table[:2], magnitude), _permute(*table[2:], magnitude)
    # Selects byte 1 of 0xFF00 where the sign is set, else byte 0.
    signs = _permute(_int(0xFF00), _int(0), arith.andi(arith.shrui(codes, _int(3)), _int(0x1111)))
    kept = arith.andi(positive, arith.xori(signs, _int(-1)))
    return arith.ori(arith.andi(negative, signs), kept)


def _round(factor: ir.Value, by: float) -> ir.Value:
    """round(factor · by), to nearest, in the low byte."""
    f32 = ir.F32Type.get()
    constant = lambda value: arith.constant(f32, ir.FloatAttr.get(f32, value))
    return arith.bitcast(_i32(), arith.addf(arith.mulf(factor, constant(by)), constant(ROUNDING)))


def _bytes(words: list[ir.Value]) -> ir.Value:
    """The low bytes of four words."""
    low, high = (_permute(words[i], words[i + 1], _int(0x40)) for i in (0, 2))
    return _permute(low, high, _int(0x5410))


def _e4m3(byte: ir.Value) -> ir.Value:
    """The value of a positive, normal e4m3: exponent and mantissa in place, the bias changed from 7 to 127."""
    bits = arith.andi(arith.extui(_i32(), byte), _int(0x7F))
    raised = arith.addi(arith.shli(bits, _int(20)), _int((127 - 7) << 23))
    return arith.bitcast(ir.F32Type.get(), raised)


def _permute(low: ir.Value, high: ir.Value, selector: ir.Value) -> ir.Value:
    """Four bytes of eight, by the four low nibbles of the selector."""
    return llvm.inline_asm(_i32(), [low, high, selector], "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r")


def _element(v: ir.Value, index: int) -> ir.Value:
    return vector.extract(v, dynamic_position=[], static_position=ir.DenseI64ArrayAttr.get([index]))


def _elements(v: ir.Value, count: int) -> list[ir.Value]:
    return [_element(v, index) for index in range(count)]


def _i32() -> ir.Type:
    return ir.IntegerType.get_signless(32)


def _int(value: int) -> ir.Value:
    return arith.constant(_i32(), ir.IntegerAttr.get(_i32(), value))


def _index(value: int) -> ir.Value:
    return arith.constant(ir.IndexType.get(), ir.IntegerAttr.get(ir.IndexType.get(), value))
