"""Products of one warp, as its lanes hold them."""

import numpy as np

from pallas_kernels.quantize_rows.spec import signs


def product_of_lanes(words, q, half):
    """What m16n8k16 products with eight columns of Sylvester's matrix of 16 leave in 32 lanes; pairs are (32, 2)."""
    lane = np.arange(32)
    rows = np.zeros((16, 16))
    for left, sign in zip(words, signs(len(words))[q], strict=True):
        for i, pair in enumerate(left):
            for j in range(2):
                rows[lane // 4 + 8 * (i % 2), 2 * (lane % 4) + j + 8 * (i // 2)] += sign * pair[:, j]
    sums = rows @ signs(16)[:, 8 * half : 8 * half + 8]
    return [sums[lane // 4 + 8 * (i // 2), 2 * (lane % 4) + i % 2] for i in range(4)]
