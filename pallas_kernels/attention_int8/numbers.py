"""What the kernel, its prologue and its emulation have to agree on."""

import math

HEAD = 128  # the head dimension
ROWS = 64  # query rows of a warpgroup: one wgmma
ONES = 8  # rows of ones under V: their product with the weights sums the rows of the softmax
GROUP = 16  # 8-bit values are permuted inside groups of this size
LOG2E = math.log2(math.e)

PEAK_8BIT = 8.0  # the largest weight of a row becomes 2^8 of e4m3's 448
LINEAR_GROUPS = 4  # of every four groups of keys, so many may interpolate
# Interpolating 2^f by 1 + f overshoots by 0 to 8.6 %. Shifting the code by this many eighths of an octave makes the
# mean right; what is left is 1.7 % rms, beside the 2.6 % of rounding to three mantissa bits.
LINEAR_SHIFT = 0.46

# In 16 bits the interpolated code is f16's own, and a parabola in its mantissa m (1 to 2) takes the bulge away:
# 2^f / (1 + f) = c0 + c1 m + c2 m², within 0.4 %; 0.2 % rms with the roundings to f16. The coefficients are in f16.
PARABOLA = (1.458984375, -0.693359375, 0.234130859375)
F16_BIAS = 15
F16_ONE = 1024  # codes an octave


def place_of(key: int) -> int:
    """Where V holds a key of a group, so that the registers of the first product are the second's left operand.

    A thread holds columns 2c and 2c + 1 of every eight; as an 8-bit operand its registers are four columns in a row.
    """
    return 4 * (key % 8 // 2) + 2 * (key // 8) + key % 2
