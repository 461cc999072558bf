"""What the prologue does to a product's tile on each thread's own registers.

A thread holds, of two rows of a warp's 16, columns 8t + 2c + j: t and j are places among its registers, c is its place
among the four lanes of the row.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.mosaic.gpu import fragmented_array as fa
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, vector

from pallas_kernels import ptx
from pallas_kernels.attention_int8.numbers import GROUP, HEAD, ROWS
from pallas_kernels.quantize_rows.registers import Product, product_with, thread_signs

BY_ROW, BY_COLUMN = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)
TILES = HEAD // 8  # of eight columns, in a row


def rotate_pairs(x: Array, angles: Array) -> Array:
    """Columns 2c and 2c + 1 by the angle whose cosine and sine stand in these columns of `angles`."""

    @plgpu.inline_mgpu(
        arg_types=(plgpu.Layout.WGMMA, plgpu.Layout.WGMMA),
        return_type=plgpu.ShapeDtypeStruct(x.shape, jnp.float32, layout=plgpu.Layout.WGMMA),
    )
    def inner(_, x, angles):
        out = np.empty_like(x.registers)
        for index in np.ndindex(out.shape):
            (a, b), (cosine, sine) = (_elements(array.registers[index]) for array in (x, angles))
            first = arith.subf(arith.mulf(a, cosine), arith.mulf(b, sine))
            second = arith.addf(arith.mulf(b, cosine), arith.mulf(a, sine))
            out[index] = vector.from_elements(x.registers[index].type, [first, second])
        return fa.FragmentedArray(_registers=out, _layout=x.layout, _is_signed=None)

    return inner(x, angles)


def turn_rows(x: Array) -> Array:
    """x (64, 128), rounded to bf16, by Sylvester's matrix of 128; f32, without the factor 1 / √128."""

    @plgpu.inline_mgpu(
        arg_types=(plgpu.Layout.WGMMA,),
        return_type=plgpu.ShapeDtypeStruct(x.shape, jnp.float32, layout=plgpu.Layout.WGMMA),
    )
    def inner(_, x):
        pairs = x.registers.reshape(TILES, 2)  # per eight columns, per half of the rows
        words = [[ptx.to_bf16(_elements(pair)) for pair in tile] for tile in pairs]
        tiles = turned_tiles(words, product_with(thread_signs()), arith.addf, arith.subf)
        out = np.empty_like(pairs)
        for t, half in np.ndindex(out.shape):
            out[t, half] = vector.from_elements(pairs[t, half].type, tiles[t][2 * half : 2 * half + 2])
        return fa.FragmentedArray(_registers=out.reshape(x.registers.shape), _layout=x.layout, _is_signed=None)

    return inner(x)


def turned_tiles(words: list[list[Any]], product: Product, add: Callable, subtract: Callable) -> list[list[Any]]:
    """From the words of both halves of the rows, by t, four values: two of either half.

    The lowest bit of t, c and j are the column of a 16 × 16 product, whose result lies where its operand did: no lane
    asks another for anything. The next bit sums two such products, the other two are butterflies inside a thread.
    """
    tiles = []
    for first in range(0, TILES, 4):
        lefts = [words[t] + words[t + 1] for t in (first, first + 2)]
        tiles += [product(lefts, q, half) for q in (0, 1) for half in (0, 1)]
    for distance in (4, 8):
        for t in range(TILES):
            if not t & distance:
                both = list(zip(tiles[t], tiles[t + distance], strict=True))
                tiles[t], tiles[t + distance] = [add(*x) for x in both], [subtract(*x) for x in both]
    return tiles


def largest_of_warp(rows: Array) -> Array:
    """Of 16 rows, in each of them."""

    @plgpu.inline_mgpu(arg_types=(BY_ROW,), return_type=plgpu.ShapeDtypeStruct(rows.shape, jnp.float32, layout=BY_ROW))
    def inner(_, rows):
        larger = lambda x, y: ptx.maximum(x, y, "f")
        top = functools.reduce(larger, [_elements(register)[0] for register in rows.registers.flat])
        top = ptx.across_lanes(top, "f", larger, (4, 8, 16))
        out = np.empty_like(rows.registers)
        for index in np.ndindex(out.shape):
            out[index] = vector.from_elements(rows.registers[index].type, [top])
        return fa.FragmentedArray(_registers=out, _layout=rows.layout, _is_signed=None)

    return inner(rows)


def e4m3_in_fours(x: Array) -> Array:
    """f32 to e4m3 bits in s8; columns 8e + 2c + j of every 16 go to 4c + 2e + j, which is a renaming of registers."""
    columns = x.shape[1]

    @plgpu.inline_mgpu(
        arg_types=(plgpu.Layout.WGMMA,),
        return_type=plgpu.ShapeDtypeStruct(x.shape, jnp.int8, layout=plgpu.Layout.WGMMA_8BIT),
    )
    def inner(_, x):
        pairs = x.registers.reshape(columns // 8, 2)  # per eight columns, per half of the rows
        layout = fa.WGMMA_LAYOUT_8BIT
        out = np.empty((columns // GROUP, 2), dtype=object)
        four = ir.VectorType.get((4,), ir.IntegerType.get_signless(8))
        for group, half in np.ndindex(out.shape):
            values = [e for tile in (2 * group, 2 * group + 1) for e in _elements(pairs[tile, half])]
            out[group, half] = vector.bitcast(four, _word(ptx.to_e4m3(values)))
        shape = layout.registers_shape((ROWS, columns))
        return fa.FragmentedArray(_registers=out.reshape(shape), _layout=layout, _is_signed=True)

    return inner(x)


def _elements(v: ir.Value) -> list[ir.Value]:
    position = lambda i: ir.DenseI64ArrayAttr.get([i])
    count = ir.VectorType(v.type).shape[0]
    return [vector.extract(v, dynamic_position=[], static_position=position(i)) for i in range(count)]


def _word(x: ir.Value) -> ir.Value:
    return vector.from_elements(ir.VectorType.get((1,), x.type), [x])
