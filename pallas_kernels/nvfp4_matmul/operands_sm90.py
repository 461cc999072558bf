"""The left operands of `kernel_sm90`'s products: codes and scales of a warpgroup, decoded in its registers."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.mosaic.gpu import fragmented_array as fa
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, vector

from pallas_kernels.nvfp4_matmul.config import CHUNK
from pallas_kernels.nvfp4_matmul.decode_sm90 import pairs
from pallas_kernels.nvfp4_matmul.emulation import scale_bits

ROWS = 64  # of the weight, per decoding warpgroup
WORDS = CHUNK // 8
BLOCKS = CHUNK // 16
STEP = 64  # of K, per register operand


def decode(words: Array, scales: Array) -> list[Array]:
    """Words s32 (64, 32) and scales (64, 16) to four operands bf16 (64, 64), in the order of `interleave`.

    Pairs are multiplied by their block's scale and get the names a wgmma operand wants. No data moves.
    """
    operand = plgpu.ShapeDtypeStruct((ROWS, STEP), jnp.bfloat16, layout=plgpu.Layout.WGMMA)

    @plgpu.inline_mgpu(arg_types=(plgpu.Layout.WGMMA_8BIT, plgpu.Layout.WGMMA), return_type=[operand] * (CHUNK // STEP))
    def inner(ctx, words, scales):
        # Words: per 16, per half of the rows, a 4-vector: words 0 and 1 of two blocks. Scales: 2-vectors.
        words = words.registers.reshape(WORDS // 16, 2)
        factors = scales.registers.reshape(BLOCKS // 8, 2)
        steps = []
        for half, low in np.ndindex(2, 2):
            registers = np.empty((STEP // 8, 2), dtype=object)
            for rows in range(2):
                factor = _as_pair(_element(factors[half, rows], low))
                for word in range(2):
                    for i, pair in enumerate(pairs(_element(words[half, rows], 2 * low + word))):
                        registers[4 * word + i, rows] = arith.mulf(_as_pair(pair), factor)
            shape = fa.WGMMA_LAYOUT.registers_shape((ROWS, STEP))
            steps.append(
                fa.FragmentedArray(_registers=registers.reshape(shape), _layout=fa.WGMMA_LAYOUT, _is_signed=None)
            )
        return steps

    return inner(words, scale_bits(scales) * 0x10001)


def _element(v: ir.Value, index: int) -> ir.Value:
    return vector.extract(v, dynamic_position=[], static_position=ir.DenseI64ArrayAttr.get([index]))


def _as_pair(word: ir.Value) -> ir.Value:
    return llvm.bitcast(ir.VectorType.get((2,), ir.BF16Type.get()), word)
