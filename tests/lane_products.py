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


def left_of_lanes(words):
    """The left operand of an m16n8k16 product, 16 × 16, that four pairs a lane are."""
    lane, rows = np.arange(32), np.zeros((16, 16))
    for i, pair in enumerate(words):
        for j in range(2):
            rows[lane // 4 + 8 * (i % 2), 2 * (lane % 4) + j + 8 * (i // 2)] = pair[:, j]
    return rows


def right_of_lanes(words):
    """The right operand, 16 × 8, that two pairs a lane are."""
    lane, columns = np.arange(32), np.zeros((16, 8))
    for i, pair in enumerate(words):
        for j in range(2):
            columns[2 * (lane % 4) + j + 8 * i, lane // 4] = pair[:, j]
    return columns
