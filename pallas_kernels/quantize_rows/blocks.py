"""Four-bit codes and block scales of NVFP4, in the registers of whoever holds the sixteen values of a block."""

from collections.abc import Sequence

from pallas_kernels import ptx
from pallas_kernels.ptx import Value
from pallas_kernels.quantize_rows.spec import E2M1_MAX, E4M3_MAX, E4M3_SMALLEST

# A value to its code: below 1 one more than it, else itself, rounded to one bit of mantissa, half to even.
CODE = (
    "{{ .reg .f32 y, z; .reg .b32 b, l; .reg .pred p; mul.f32 y, {i[0]}, {i[1]}; abs.f32 y, y; "
    "min.f32 y, y, 0f40C00000; setp.lt.f32 p, y, 0f3F800000; add.f32 z, y, 0f3F800000; selp.f32 z, z, y, p; "
    "mov.b32 b, z; bfe.u32 l, b, 22, 1; add.u32 b, b, l; add.u32 b, b, 0x1FFFFF; shr.u32 b, b, 22; "
    "selp.b32 l, 254, 252, p; sub.u32 b, b, l; mov.b32 l, {i[0]}; shr.u32 l, l, 31; mad.lo.u32 {o[0]}, l, 8, b; }}"
)


def encoded(block: Sequence[Value], factor: Value) -> tuple[list[Value], Value]:
    """Two words of codes and the bits of their e4m3 scale. `factor` is the inverse of the row's outer scale."""
    bits, reciprocal = _block_scale(block, factor)
    codes = [ptx.op(CODE, "r", ("f", value), ("f", reciprocal)) for value in block]
    return [_word(codes[:8]), _word(codes[8:])], bits


def _block_scale(values: Sequence[Value], factor: Value) -> tuple[Value, Value]:
    """(The bits of the e4m3 scale that puts the largest value at 6, what a value is multiplied by to become a code.)"""
    largest = ptx.op("abs.f32 {o[0]}, {i[0]};", "f", ("f", values[0]))
    for value in values[1:]:
        text = "{{ .reg .f32 a; abs.f32 a, {i[1]}; max.f32 {o[0]}, {i[0]}, a; }}"
        largest = ptx.op(text, "f", ("f", largest), ("f", value))
    wanted = ptx.multiply(ptx.multiply(largest, factor), ptx.constant(1 / E2M1_MAX, "f"))
    low, high = ptx.constant(E4M3_SMALLEST, "f"), ptx.constant(E4M3_MAX, "f")
    text = (
        "{{ .reg .f32 a; .reg .b16 h; max.f32 a, {i[0]}, {i[1]}; min.f32 a, a, {i[2]}; "
        "cvt.rn.satfinite.e4m3x2.f32 h, a, a; mov.b32 {o[0]}, {{h, h}}; and.b32 {o[0]}, {o[0]}, 0x7f; }}"
    )
    bits = ptx.op(text, "r", ("f", wanted), ("f", low), ("f", high))
    # Normal, so exponent and mantissa only change places, and the bias from 7 to 127.
    text = "{{ .reg .b32 b; shl.b32 b, {i[0]}, 20; add.u32 b, b, 0x3C000000; mov.b32 {o[0]}, b; }}"
    return bits, ptx.multiply(factor, ptx.reciprocal(ptx.op(text, "f", ("r", bits))))


def _word(codes: Sequence[Value]) -> Value:
    word = codes[-1]
    for code in reversed(codes[:-1]):
        word = ptx.op("mad.lo.u32 {o[0]}, {i[0]}, 16, {i[1]};", "r", ("r", word), ("r", code))
    return word
