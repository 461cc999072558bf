"""GELU of what a lane of `warps_sm90` holds, in registers."""

from pallas_kernels import ptx
from pallas_kernels.ptx import Value
from pallas_kernels.quantize_rows import registers as regs


def activated(words: list[Value]) -> tuple[list[Value], Value, Value]:
    """Of bf16 pairs: their GELU, rounded to bf16; Σ and max of its magnitudes before that, of this lane alone."""
    total, largest, out = ptx.constant(0.0, "f"), ptx.constant(0.0, "f"), []
    for word in words:
        pair = [_gelu_tanh(x) for x in regs.as_floats(word)]
        total = ptx.add(total, regs.sum_of_magnitudes(*pair))
        for y in pair:
            largest = regs.max_magnitude(largest, y)
        out.append(ptx.to_bf16(pair))
    return out, total, largest


def _gelu_tanh(x: Value) -> Value:
    """In six instructions: `int8_matmul.emulation.gelu_tanh` with the special unit's tanh."""
    text = (
        "{{ .reg .f32 a, h; mul.rn.f32 a, {i[0]}, {i[0]}; fma.rn.f32 a, a, {i[1]}, {i[2]}; mul.rn.f32 a, a, {i[0]}; "
        "tanh.approx.f32 a, a; mul.rn.f32 h, {i[0]}, 0f3F000000; fma.rn.f32 {o[0]}, h, a, h; }}"
    )
    inner = 0.7978845608028654
    factors = [("f", ptx.constant(factor, "f")) for factor in (0.044715 * inner, inner)]
    return ptx.op(text, "f", ("f", x), *factors)
