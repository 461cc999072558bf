"""One block's scores to weights, in a thread's registers.

A thread holds two rows of the product, and of each the columns 2c and 2c + 1 of every eight. Pipes decide how this is
written (cycles of a warp's instruction, measured): fma 1, also of f16 pairs; integer to float, maximum, pack to f16,
byte permute 2; pack to e4m3 4; exp2 8. The maximum takes three operands. An e4m3 weight by exp2 costs 10 cycles of slow
pipes, an interpolated one 1.5.
"""

import functools
import math

from pallas_kernels import ptx
from pallas_kernels.attention_int8.numbers import (
    F16_BIAS,
    F16_ONE,
    GROUP,
    HEAD,
    LINEAR_GROUPS,
    LINEAR_SHIFT,
    PARABOLA,
)
from pallas_kernels.attention_int8.tile import Tile
from pallas_kernels.ptx import Value

MAX_CHAINS = 4  # long enough for the three-operand maximum, short enough to hide its latency
SUM_CHAINS = 4
LOWEST = -1e30
SMALLEST_F16 = 2.0**-24  # its bits are 1
E4M3_BIAS = 7
ONE = HEAD // 2  # the accumulator of a thread's first row and the first column of ones


def softmax(
    tile: Tile, s: list[Value], o: list[Value], top: list[Value], scale: list[Value], valid: Value | None
) -> tuple[list[Value], list[Value], list[Value]]:
    """Returns (O rescaled to the new maxima, P, the running maxima in log2 units).

    `scale` takes scores to log2 units, a row each. `valid` is how many keys of this block exist, if not all do.
    """
    rows = [[s[4 * t + 2 * r + j] for t in range(tile.keys // 8) for j in (0, 1)] for r in (0, 1)]
    # Smoothed keys need no mask here: padding scores 0, which is never above the maximum.
    if valid is not None and tile.qk == "bf16":
        rows = [[_mask(x, i, "f", valid) for i, x in enumerate(row)] for row in rows]
    new_top, offset = [], []
    for r in (0, 1):
        new_top.append(ptx.maximum(top[r], ptx.multiply(_row_max(tile, rows[r]), scale[r]), "f"))
        offset.append(ptx.subtract(ptx.constant(tile.peak, "f"), new_top[r]))
    if tile.pv == "e4m3":
        p, sums = _weights_8bit(tile, rows, scale, offset), []
    else:
        weigh = _weights_f16 if tile.pv == "f16" else _weights_bf16
        p, sums = weigh(tile, rows, scale, offset, valid)
    o = _rescale(tile, o, top, new_top)
    acc = tile.accumulators
    if tile.promotes:  # what the column of ones summed since the last block, before it gets long
        sums, o[ONE:acc] = _ones(o), [ptx.own_zero() for _ in range(acc - ONE)]
    return o[:acc] + [ptx.add(o[acc + r], x) for r, x in enumerate(sums)], p, new_top


def _ones(o: list[Value]) -> list[Value]:
    """The two rows' products with the first column of ones."""
    return [o[ONE], o[ONE + 2]]


def start(tile: Tile) -> tuple[list[Value], list[Value]]:
    """(O, maxima) before the first block."""
    return [ptx.constant(0.0, "f")] * tile.outputs, [ptx.constant(-math.inf, "f")] * 2


def finish(tile: Tile, o: list[Value], top: list[Value]) -> tuple[list[Value], list[Value]]:
    """(O divided by the row sums, the natural logarithms of the sums of exponentials)."""
    acc = tile.accumulators
    if tile.promotes:
        sums = [ptx.add(x, y) for x, y in zip(_ones(o), o[acc:], strict=True)]
    elif tile.pv == "e4m3":
        sums = _ones(o)
    else:
        sums = [ptx.across_lanes(x, "f", ptx.add) for x in o[acc:]]
    inverse = [ptx.reciprocal(x) for x in sums]
    out = [ptx.multiply(x, inverse[i // 2 % 2]) for i, x in enumerate(o[:ONE])]
    return out, [_natural_log(tile, top[r], sums[r]) for r in (0, 1)]


def _natural_log(tile: Tile, top: Value, total: Value) -> Value:
    exponent = ptx.subtract(ptx.add(top, ptx.log2(total)), ptx.constant(tile.peak, "f"))
    return ptx.multiply(exponent, ptx.constant(math.log(2), "f"))


def _row_max(tile: Tile, row: list[Value]) -> Value:
    kind = tile.score_kind
    larger = lambda x, y: ptx.maximum(x, y, kind)
    tops = [functools.reduce(larger, row[i::MAX_CHAINS]) for i in range(MAX_CHAINS)]
    top = ptx.across_lanes(larger(larger(tops[0], tops[1]), larger(tops[2], tops[3])), kind, larger)
    return _as_float(tile, top)


def _as_float(tile: Tile, score: Value) -> Value:
    return ptx.to_float(score) if tile.qk == "s8" else score


def _mask(x: Value, i: int, kind: str, valid: Value, lowest: float = LOWEST) -> Value:
    """The i-th value of a row becomes the lowest if its key does not exist."""
    text = (
        f"{{{{ .reg .pred p; .reg .b32 a; mad.lo.s32 a, {{i[1]}}, 2, {i // 2 * 8 + i % 2}; setp.lt.s32 p, a, {{i[2]}}; "
        "selp.b32 {o[0]}, {i[0]}, {i[3]}, p; }}"
    )
    low = ptx.constant(lowest, kind)
    return ptx.op(text, kind, (kind, x), ("r", ptx.thread_column()), ("r", valid), (kind, low))


def _rescale(tile: Tile, o: list[Value], top: list[Value], new_top: list[Value]) -> list[Value]:
    alpha = [ptx.exp2(ptx.subtract(top[r], new_top[r])) for r in (0, 1)]
    row_of = [i // 2 % 2 for i in range(tile.accumulators)] + [0, 1][: tile.outputs - tile.accumulators]
    return [ptx.multiply(x, alpha[r]) for x, r in zip(o, row_of, strict=True)]


def _weights_8bit(tile: Tile, rows: list[list[Value]], scale: list[Value], offset: list[Value]) -> list[Value]:
    """Of every 16 keys four bytes of one row, then four of the other: the layout of an 8-bit left operand."""
    unit = ptx.constant(8 * SMALLEST_F16, "f")
    bias = ptx.constant((8 * E4M3_BIAS - LINEAR_SHIFT) * SMALLEST_F16, "f")
    code_offset = [ptx.fma(x, unit, bias) for x in offset]
    code_scale = [ptx.multiply(x, unit) for x in scale]
    weights = []
    for group in range(tile.keys // GROUP):
        for r in (0, 1):
            four = [_as_float(tile, x) for x in rows[r][4 * group : 4 * group + 4]]
            if group % LINEAR_GROUPS < tile.config.linear:
                weights.append(_interpolated_codes(four, code_scale[r], code_offset[r]))
            else:
                weights.append(_exact_codes(four, scale[r], offset[r]))
    return weights


def _exact_codes(four: list[Value], scale: Value, offset: Value) -> Value:
    return ptx.to_e4m3([ptx.exp2(ptx.fma(x, scale, offset)) for x in four])


def _interpolated_codes(four: list[Value], scale: Value, offset: Value) -> Value:
    """The e4m3 code itself as a number: exponent and mantissa bits read together are log2, interpolated.

    Rounding to a subnormal f16 leaves that integer in its low bits, and relu holds weights that vanish at zero.
    """
    codes = [ptx.fma(x, scale, offset) for x in four]
    text = (
        "{{ .reg .b32 l, h; cvt.rn.relu.f16x2.f32 l, {i[1]}, {i[0]}; cvt.rn.relu.f16x2.f32 h, {i[3]}, {i[2]}; "
        "prmt.b32 {o[0]}, l, h, 0x6420; }}"
    )
    return ptx.op(text, "r", *(("f", x) for x in codes))


def _weights_bf16(
    tile: Tile, rows: list[list[Value]], scale: list[Value], offset: list[Value], valid: Value | None
) -> tuple[list[Value], list[Value]]:
    """(P in bf16 pairs, the sums of its rows in f32)."""
    weights: list[Value] = []
    exponentials: list[list[Value]] = [[], []]
    for t in range(tile.keys // 8):
        for r in (0, 1):
            for i in (2 * t, 2 * t + 1):
                log = ptx.fma(_as_float(tile, rows[r][i]), scale[r], offset[r])
                exponentials[r].append(ptx.exp2(log if valid is None else _mask(log, i, "f", valid)))
            weights.append(ptx.to_bf16(exponentials[r][-2:]))
    return weights, [_sum(x) for x in exponentials]


def _weights_f16(
    tile: Tile, rows: list[list[Value]], scale: list[Value], offset: list[Value], valid: Value | None
) -> tuple[list[Value], list[Value]]:
    """(P in f16 pairs, the sums of its rows in f32), without the special unit."""
    octaves = 16  # codes are a sixteenth of an f32 in 0..1, which saturation holds them to
    code_scale = [ptx.multiply(x, ptx.constant(1 / octaves, "f")) for x in scale]
    bias = ptx.constant(F16_BIAS / octaves, "f")
    code_offset = [ptx.fma(x, ptx.constant(1 / octaves, "f"), bias) for x in offset]
    coefficients = [ptx.twice_f16(x) for x in (*PARABOLA, 1.0)]
    weights: list[Value] = []
    pairs: list[list[Value]] = [[], []]
    for t in range(tile.keys // 8):
        for r in (0, 1):
            codes = []
            for i in (2 * t, 2 * t + 1):
                code = _saturated_fma(_as_float(tile, rows[r][i]), code_scale[r], code_offset[r])
                codes.append(code if valid is None else _mask(code, i, "f", valid, 0.0))
            pairs[r].append(_exp2_f16x2(codes, octaves, coefficients))
            weights.append(pairs[r][-1])
    return weights, [_sum_f16x2(x) for x in pairs]


def _saturated_fma(x: Value, scale: Value, offset: Value) -> Value:
    return ptx.op("fma.rn.sat.f32 {o[0]}, {i[0]}, {i[1]}, {i[2]};", "f", ("f", x), ("f", scale), ("f", offset))


def _exp2_f16x2(codes: list[Value], octaves: int, coefficients: list[Value]) -> Value:
    """Two codes to f16 bits by adding 2^23, whose unit is 1; then times the parabola in the mantissa."""
    one, magic = ptx.constant(float(octaves * F16_ONE), "f"), ptx.constant(2.0**23, "f")
    low, high = (ptx.fma(x, one, magic) for x in codes)
    straight = ptx.op("prmt.b32 {o[0]}, {i[0]}, {i[1]}, 0x5410;", "r", ("f", low), ("f", high))
    c0, c1, c2, ones = coefficients
    # (a & b) | c: the bits of the mantissa under the exponent of 1.
    mantissa = ptx.op("lop3.b32 {o[0]}, {i[0]}, 0x03ff03ff, {i[1]}, 0xea;", "r", ("r", straight), ("r", ones))
    factor = ptx.fma_f16x2(ptx.fma_f16x2(mantissa, c2, c1), mantissa, c0)
    return ptx.op("mul.rn.f16x2 {o[0]}, {i[0]}, {i[1]};", "r", ("r", straight), ("r", factor))


def _sum_f16x2(pairs: list[Value]) -> Value:
    """Chains short enough for f16 (at most 14 terms of at most 1), then f32."""
    chains = [functools.reduce(ptx.add_f16x2, pairs[i::SUM_CHAINS]) for i in range(SUM_CHAINS)]
    halves = []
    for chain in chains:
        for half in ("l", "h"):
            text = f"{{{{ .reg .b16 l, h; mov.b32 {{{{l, h}}}}, {{i[0]}}; cvt.f32.f16 {{o[0]}}, {half}; }}}}"
            halves.append(ptx.op(text, "f", ("r", chain)))
    return _sum(halves)


def _sum(values: list[Value]) -> Value:
    sums = [functools.reduce(ptx.add, values[i::SUM_CHAINS]) for i in range(SUM_CHAINS)]
    return ptx.add(ptx.add(sums[0], sums[1]), ptx.add(sums[2], sums[3]))
