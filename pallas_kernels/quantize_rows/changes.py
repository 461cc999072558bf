"""What comes before rounding, of what a lane of `warps_sm90` holds: norm, factor and offset by channel, GELU."""

from collections.abc import Callable

from pallas_kernels import ptx
from pallas_kernels.ptx import Value
from pallas_kernels.quantize_rows import registers as regs
from pallas_kernels.quantize_rows.registers import CHUNK
from pallas_kernels.quantize_rows.spec import Spec

Pairs = list[tuple[Value, Value]]  # by column of a chunk: what it is multiplied by, what is added


def changed(
    spec: Spec, words: list[Value], norm: tuple[Value, Value] | None, channels: Callable[[int], Pairs] | None
) -> tuple[list[Value], Value, Value]:
    """Of bf16 pairs: what is encoded, rounded to bf16; Σ and max of its magnitudes before that, of this lane alone.

    norm: what a value of the row is multiplied by and what is added. channels: those of a chunk's columns.
    """
    total, largest, out = ptx.constant(0.0, "f"), ptx.constant(0.0, "f"), []
    for q in range(len(words) * 2 // CHUNK):
        values = [x for word in words[4 * q : 4 * q + 4] for x in regs.as_floats(word)]
        if norm is not None:
            values = [ptx.fma(x, *norm) for x in values]
        if channels is not None:
            values = [ptx.fma(x, *pair) for x, pair in zip(values, channels(q), strict=True)]
        if spec.activation:
            values = [_gelu_tanh(x) for x in values]
        for pair in zip(values[::2], values[1::2], strict=True):
            total = ptx.add(total, regs.sum_of_magnitudes(*pair))
            out.append(ptx.to_bf16(pair))
        for y in values:
            largest = regs.max_magnitude(largest, y)
    return out, total, largest


def norm_of(total: Value, squares: Value, k: int, spec: Spec) -> tuple[Value, Value]:
    """`spec.moments` of Σx and Σx² of a row, as what is multiplied by and what is added."""
    mean = ptx.multiply(total, ptx.constant(1 / k, "f"))
    text = (
        "{{ .reg .f32 a, b; mul.rn.f32 a, {i[0]}, {i[0]}; neg.f32 a, a; fma.rn.f32 b, {i[1]}, {i[2]}, a; "
        "max.NaN.f32 b, b, 0f00000000; add.rn.f32 b, b, {i[3]}; rsqrt.approx.f32 {o[0]}, b; }}"
    )
    factors = [("f", ptx.constant(x, "f")) for x in (1 / k, spec.eps)]
    inverse = ptx.op(text, "f", ("f", mean), ("f", squares), *factors)
    return inverse, ptx.multiply(ptx.subtract(ptx.constant(0.0, "f"), mean), inverse)


def _gelu_tanh(x: Value) -> Value:
    """In six instructions: `int8_matmul.emulation.gelu_tanh` with the special unit's tanh."""
    text = (
        "{{ .reg .f32 a, h; mul.rn.f32 a, {i[0]}, {i[0]}; fma.rn.f32 a, a, {i[1]}, {i[2]}; mul.rn.f32 a, a, {i[0]}; "
        "tanh.approx.f32 a, a; mul.rn.f32 h, {i[0]}, 0f3F000000; fma.rn.f32 {o[0]}, h, a, h; }}"
    )
    inner = 0.7978845608028654
    factors = [("f", ptx.constant(factor, "f")) for factor in (0.044715 * inner, inner)]
    return ptx.op(text, "f", ("f", x), *factors)
