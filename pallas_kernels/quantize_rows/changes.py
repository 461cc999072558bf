"""What comes before rounding, of what a lane of `warps_sm90` holds: norm, factor and offset by channel, GELU."""

from collections.abc import Callable

from pallas_kernels import ptx
from pallas_kernels.ptx import Value
from pallas_kernels.quantize_rows import registers as regs
from pallas_kernels.quantize_rows.registers import CHUNKS
from pallas_kernels.quantize_rows.spec import Spec

Pairs = list[tuple[Value, Value]]  # by column of a chunk: what it is multiplied by, what is added
Norm = tuple[Value, Value]  # the same of all values of a row
Changed = tuple[list[Value], Value, Value]  # bf16 pairs to encode; Σ and max of magnitudes before they were rounded


def changed(
    spec: Spec, units: list[list[Value]], norms: list[Norm | None], channels: Callable[[int], Pairs] | None
) -> list[Changed]:
    """Of units of bf16 pairs whose columns are the same, for which a chunk's `channels` are read once.

    Sums and largest values are of this lane alone.
    """
    zero = ptx.constant(0.0, "f")
    out: list[Changed] = [([], zero, zero) for _ in units]
    for q in range(CHUNKS):
        pairs = channels and channels(q)
        for i, (words, norm) in enumerate(zip(units, norms, strict=True)):
            out[i] = _with_chunk(spec, out[i], words[4 * q : 4 * q + 4], norm, pairs)
    return out


def _with_chunk(spec: Spec, before: Changed, words: list[Value], norm: Norm | None, pairs: Pairs | None) -> Changed:
    out, total, largest = before
    values = [x for word in words for x in regs.as_floats(word)]
    if norm is not None:
        values = [ptx.fma(x, *norm) for x in values]
    if pairs is not None:
        values = [ptx.fma(x, *pair) for x, pair in zip(values, pairs, strict=True)]
    if spec.activation:
        values = [_gelu_tanh(x) for x in values]
    rounded = []
    for pair in zip(values[::2], values[1::2], strict=True):
        total = ptx.add(total, regs.sum_of_magnitudes(*pair))
        rounded.append(ptx.to_bf16(pair))
    for y in values:
        largest = regs.max_magnitude(largest, y)
    return out + rounded, total, largest


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
