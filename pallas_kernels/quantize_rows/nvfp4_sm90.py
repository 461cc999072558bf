"""The quantizer's kernel with NVFP4 results: four-bit codes, an e4m3 scale for 16 values, an outer scale a row.

The matrix of the rotation has its columns permuted so that the sixteen values that a thread holds of a half group are
neighbours, one block: its largest value, its scale and its two words of codes are a matter of one thread.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu import fragmented_array as fa
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, vector

from pallas_kernels.mosaic import swizzled
from pallas_kernels.quantize_rows.blocks import encoded
from pallas_kernels.quantize_rows.config import GROUP, TILE
from pallas_kernels.quantize_rows.kernel_sm90 import HALF, ROWS, Kernel, Outputs
from pallas_kernels.quantize_rows.spec import BLOCK

WORDS = HALF // 8  # of codes, in a half group
BLOCKS = GROUP // BLOCK


def order() -> np.ndarray:
    """Which column of a half group the column n of the product is: n = 8t + 2c + j is column 16c + 2t + j."""
    n = np.arange(HALF)
    return BLOCK * (n % 8 // 2) + 2 * (n // 8) + n % 2


@dataclasses.dataclass(frozen=True)
class Nvfp4Kernel(Kernel):
    @property
    def codes_type(self) -> Any:
        return jax.ShapeDtypeStruct((self.m, self.k // 8), jnp.int32)

    @property
    def more_types(self) -> tuple[Any, ...]:
        """The e4m3 bits by block, tile, row and lane, whose two blocks lie side by side."""
        return (jax.ShapeDtypeStruct((self.blocks * self.tiles * TILE * BLOCKS,), jnp.int8),)

    @property
    def matrix(self) -> np.ndarray:
        return super().matrix[order()]

    def codes_scratch(self) -> Any:
        shape = (self.config.warpgroups, self.config.slots, TILE, GROUP // 8)
        return plgpu.SMEM(shape, jnp.int32, transforms=swizzled(WORDS, jnp.int32))

    def _store(self, wg, block, tile, slot, inverse, outputs: Outputs, scratch) -> None:
        codes_smem = scratch["codes_smem"].at[wg, slot]
        plgpu.wait_smem_to_gmem((self.config.slots - 1) * self.tile_groups, wait_read_only=True)
        halves = [scratch["x_smem"].at[tile, :, pl.ds(half * HALF, HALF)] for half in (0, 1)]

        def multiply(left, right):
            plgpu.wgmma(left, halves[0], scratch["matrix_smem"].T)
            plgpu.wgmma(right, halves[1], scratch["matrix_smem"].T)
            plgpu.wgmma_wait(0)
            return left[...], right[...]

        acc = plgpu.ACC((TILE, HALF), jnp.float32)
        values = self._butterfly(*pl.run_scoped(multiply, acc, acc))
        first = (block * self.tiles + tile) * TILE * BLOCKS
        for half, words in enumerate(encode(*values, inverse, first, outputs.block_scale)):
            codes_smem[:, pl.ds(half * WORDS, WORDS)] = words
        plgpu.commit_smem()
        rows = pl.ds(block * self.config.rows, self.config.rows)
        for g in range(self.tile_groups):
            inside = pl.ds(g * self.config.rows, self.config.rows)
            columns = pl.ds((tile * self.tile_groups + g) * (GROUP // 8), GROUP // 8)
            plgpu.copy_smem_to_gmem(codes_smem.at[inside], outputs.codes.at[rows, columns])


def encode(left: Array, right: Array, inverse: Array, first: Array, block_scale_gmem: Any) -> list[Array]:
    """Words of codes s32 (64, 8) of both halves; the scales go to memory at once. `inverse` of a row's outer scale."""
    layout = plgpu.Layout.WGMMA
    words = plgpu.ShapeDtypeStruct((TILE, WORDS), jnp.int32, layout=layout)

    @plgpu.inline_mgpu(
        arg_types=(layout, layout, ROWS, plgpu.Layout.WG_SPLAT, plgpu.RefType()), return_type=[words, words]
    )
    def inner(_, left, right, inverse, first, block_scale_gmem):
        places = list(left.layout.thread_idxs(left.shape))
        halves = [x.registers.reshape(HALF // 8, 2) for x in (left, right)]
        (start,) = first.registers.flat
        out = [np.empty((1, 2), dtype=object) for _ in halves]
        for row_half, factor in enumerate(inverse.registers.flat):
            (factor,) = _elements(factor)
            scales = []
            for half, registers in enumerate(halves):
                values = [value for t in range(HALF // 8) for value in _elements(registers[t, row_half])]
                pair, scale = encoded(values, factor)
                scales.append(scale)
                out[half][0, row_half] = vector.from_elements(ir.VectorType.get((2,), pair[0].type), pair)
            row, column = places[row_half]
            place = arith.addi(arith.addi(arith.muli(row, _index(BLOCKS)), column), _as_index(start))
            vector.store(_bytes(scales), block_scale_gmem, [place])
        return [_array(registers) for registers in out]

    return inner(left, right, inverse, first, block_scale_gmem)


def _bytes(words: list[ir.Value]) -> ir.Value:
    i8 = ir.IntegerType.get_signless(8)
    return vector.from_elements(ir.VectorType.get((2,), i8), [arith.trunci(i8, word) for word in words])


def _array(registers: np.ndarray) -> fa.FragmentedArray:
    shaped = registers.reshape(fa.WGMMA_LAYOUT.registers_shape((TILE, WORDS)))
    return fa.FragmentedArray(_registers=shaped, _layout=fa.WGMMA_LAYOUT, _is_signed=True)


def _elements(v: ir.Value) -> list[ir.Value]:
    position = lambda i: ir.DenseI64ArrayAttr.get([i])
    count = ir.VectorType(v.type).shape[0]
    return [vector.extract(v, dynamic_position=[], static_position=position(i)) for i in range(count)]


def _as_index(x: ir.Value) -> ir.Value:
    return arith.index_cast(ir.IndexType.get(), x)


def _index(value: int) -> ir.Value:
    return arith.constant(ir.IndexType.get(), ir.IntegerAttr.get(ir.IndexType.get(), value))


def by_row(bits: Array, kernel: Nvfp4Kernel, rows: int) -> Array:
    """The scales e4m3 (rows, k / 16) of `rows` parts of rows, from the order they were stored in."""
    groups, block_rows = kernel.tile_groups, kernel.config.rows
    stored = bits.reshape(kernel.blocks, kernel.tiles, groups, block_rows, BLOCKS // 2, 2)
    ordered = stored.transpose(0, 3, 1, 2, 5, 4).reshape(kernel.blocks * block_rows, -1)
    return lax.bitcast_convert_type(ordered[:rows, : kernel.k // BLOCK], jnp.float8_e4m3fn)
