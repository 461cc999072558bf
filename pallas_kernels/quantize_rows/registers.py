"""Rows in registers: what one warp does with eight groups of 128, in instructions.

Lane 4g + c holds, of group g, columns 32q + 8c + j for q in 0..3, j in 0..7. That is sixteen bytes a q, of which four
lanes load 64 next to each other, and as codes eight bytes, of which four lanes store a sector. Word p of the sixteen
bytes is j = 2p and 2p + 1.

That is how a thread holds the left operand of a 16 × 16 product, if its column is the bits (j2, c, j0) and its row the
group, twice: once for each j1. So four of the seven levels of the rotation are products with Sylvester's matrix of 16,
without unpacking or moving anything, and their results lie where the operands did. Two more, those of q, are sums of
four such products, in place of 64 additions 24 more of them; the last, of j1, is a butterfly inside a thread.
"""

from collections.abc import Callable, Sequence
from typing import Any

from pallas_kernels import ptx
from pallas_kernels.ptx import Value

GROUPS = 8  # a warp holds at a time: a unit
CHUNKS = 4  # of sixteen bytes, of a thread in a unit
CHUNK = 8  # columns in one
LANES = 4  # that share a group
BOTH_SIGNS = -0x7FFF8000  # 0x80008000
_MAX = "{{ .reg .f32 a; abs.f32 a, {i[1]}; max.NaN.f32 {o[0]}, {i[0]}, a; }}"

Product = Callable[[list[list[Any]], int, int], list[Any]]  # of chunks, for one of them, half its columns


def nearly_rotated(words: list[list[Any]], half: int, product: Product) -> list:
    """All levels but the last, of the columns with j2 = half: by chunk, the pairs (j0 = 0, 1) of j1 = 0 and of j1 = 1.

    Half a unit at a time, for the sake of registers.
    """
    values = [product(words, q, half) for q in range(CHUNKS)]
    return [(chunk[:2], chunk[2:]) for chunk in values]


def rotated(words: list[list[Any]], half: int, product: Product, add: Callable, subtract: Callable) -> list:
    """All levels; by chunk, the pairs that belong in word 2 · half of four and in the next."""
    return last_level(nearly_rotated(words, half, product), add, subtract)


def last_level(nearly: list, add: Callable, subtract: Callable) -> list:
    last = lambda a, b: ([add(*x) for x in zip(a, b, strict=True)], [subtract(*x) for x in zip(a, b, strict=True)])
    return [last(a, b) for a, b in nearly]


# The same in PTX.


def thread_signs() -> Value:
    """Two ±1 in bf16: rows 2c and 2c + 1 of column `lane / 4` of Sylvester's matrix of 8."""
    text = (
        "{{ .reg .b32 l, k, n, a, b; mov.u32 l, %laneid; and.b32 k, l, 3; shl.b32 k, k, 1; shr.u32 n, l, 2; "
        "and.b32 a, k, n; popc.b32 a, a; or.b32 k, k, 1; and.b32 b, k, n; popc.b32 b, b; "
        "shl.b32 a, a, 15; and.b32 a, a, 0x8000; shl.b32 b, b, 31; or.b32 a, a, b; xor.b32 {o[0]}, a, 0x3F803F80; }}"
    )
    return ptx.op(text, "r")


def product_with(signs: Value) -> Product:
    """Chunks with Sylvester's matrix of 4, summed, with eight columns of that of 16: its last quarter is negated."""
    negated = ptx.op("xor.b32 {o[0]}, {i[0]}, {i[1]};", "r", ("r", signs), ("r", ptx.constant(BOTH_SIGNS, "r")))

    def product(words: list[list[Value]], q: int, half: int) -> list[Value]:
        sums = None
        for r, chunk in enumerate(words):
            minus = (q & r).bit_count() % 2
            sums = ptx.mma_bf16(chunk, (signs, negated)[minus], (signs, negated)[minus ^ half], sums)
        return sums

    return product


def magnitudes(words: Sequence[Value]) -> list[Value]:
    mask = ptx.constant(0x7FFF7FFF, "r")
    return [ptx.op("and.b32 {o[0]}, {i[0]}, {i[1]};", "r", ("r", word), ("r", mask)) for word in words]


def sum_by_product(words: Sequence[Value]) -> Value:
    """Σ of a unit's bf16 pairs by group, the same in the lanes that share one, by products with ones."""
    ones = ptx.constant(0x3F803F80, "r")
    sums = [ptx.constant(0.0, "f")] * 4
    for q in range(CHUNKS):
        sums = ptx.mma_bf16(words[4 * q : 4 * q + 4], ones, ones, sums)
    return ptx.add(sums[0], sums[2])


def sum_of_squares(words: Sequence[Value]) -> Value:
    """Σx² of a unit's bf16 pairs by group, in one lane of the four that share one and 0 in the others.

    As a right operand what a lane holds is a column of what it is as a left one, so the diagonal of the product has it.
    """
    sums = [ptx.constant(0.0, "f")] * 4
    for q in range(CHUNKS):
        a, b, c, d = words[4 * q : 4 * q + 4]
        sums = ptx.mma_bf16([a, b, c, d], a, c, sums)
        sums = ptx.mma_bf16([b, a, d, c], b, d, sums)
    text = (
        "{{ .reg .b32 l, g, c; .reg .pred p, q; .reg .f32 x; mov.u32 l, %laneid; shr.u32 g, l, 3; and.b32 c, l, 3; "
        "setp.eq.u32 p, c, g; and.b32 g, l, 4; setp.ne.u32 q, g, 0; selp.f32 x, {i[1]}, {i[0]}, q; "
        "selp.f32 {o[0]}, x, 0f00000000, p; }}"
    )
    return ptx.op(text, "f", ("f", sums[0]), ("f", sums[1]))


def max_of_pairs(a: Value, b: Value) -> Value:
    return ptx.op("max.NaN.bf16x2 {o[0]}, {i[0]}, {i[1]};", "r", ("r", a), ("r", b))


def larger_of_pair(pair: Value) -> Value:
    return ptx.op("max.NaN.f32 {o[0]}, {i[0]}, {i[1]};", "f", *(("f", x) for x in as_floats(pair)))


def max_magnitude(largest: Value, x: Value) -> Value:
    return ptx.op(_MAX, "f", ("f", largest), ("f", x))


def sum_of_magnitudes(a: Value, b: Value) -> Value:
    text = "{{ .reg .f32 a, b; abs.f32 a, {i[0]}; abs.f32 b, {i[1]}; add.rn.f32 {o[0]}, a, b; }}"
    return ptx.op(text, "f", ("f", a), ("f", b))


def as_floats(pair: Value) -> tuple[Value, Value]:
    low = "{{ .reg .b32 a; shl.b32 a, {i[0]}, 16; mov.b32 {o[0]}, a; }}"
    high = "{{ .reg .b32 a; and.b32 a, {i[0]}, 0xFFFF0000; mov.b32 {o[0]}, a; }}"
    return ptx.op(low, "f", ("r", pair)), ptx.op(high, "f", ("r", pair))


def codes_of(pair: Sequence[Value], inverse: Value) -> Value:
    """Two values to the low bytes of a word: `rounded_to_codes`, with one rounding where that has two."""
    text = (
        "{{ .reg .f32 x, y; .reg .b32 a, b; fma.rn.f32 x, {i[0]}, {i[2]}, 0f4B400000; "
        "fma.rn.f32 y, {i[1]}, {i[2]}, 0f4B400000; mov.b32 a, x; mov.b32 b, y; prmt.b32 {o[0]}, a, b, 0x0040; }}"
    )
    return ptx.op(text, "r", *(("f", x) for x in pair), ("f", inverse))


def together(low: Value, high: Value) -> Value:
    return ptx.op("prmt.b32 {o[0]}, {i[0]}, {i[1]}, 0x5410;", "r", ("r", low), ("r", high))


# Lanes and memory.


def where(here: Value | None, x: Value, otherwise: Value, kind: str = "f") -> Value:
    if here is None:
        return x
    text = "{{ .reg .pred p; setp.ne.s32 p, {i[0]}, 0; selp.b32 {o[0]}, {i[1]}, {i[2]}, p; }}"
    return ptx.op(text, kind, ("r", here), (kind, x), (kind, otherwise))


def warp_max(x: Value) -> Value:
    """Bits of what is not negative order as integers do; those of a NaN come last, so that it is kept."""
    text = "{{ .reg .b32 a; mov.b32 a, {i[0]}; redux.sync.max.u32 a, a, 0xffffffff; mov.b32 {o[0]}, a; }}"
    return ptx.emit(text, "f", [("f", x)], volatile=True)[0]


def load(address: Value, offset: int, exists: Value | None) -> list[Value]:
    """Sixteen bytes of device memory, read once: they need no place in the first-level cache."""
    return ptx.load_sixteen("ld.global.nc.L1::no_allocate", ("l", address), offset, exists)


def store(address: Value, offset: int, pair: list[Value], exists: Value | None) -> None:
    _store_where("global", ("l", address), offset, pair, exists)


def store_shared_where(address: Value, offset: int, words: list[Value], exists: Value | None) -> None:
    _store_where("shared", ("r", address), offset, words, exists)


def _store_where(space: str, address: tuple[str, Value], offset: int, words: list[Value], exists: Value | None) -> None:
    """Two or four words."""
    names = ", ".join(f"{{i[{1 + i}]}}" for i in range(len(words)))
    text = f"st.{space}.v{len(words)}.b32 [{{i[0]}} + {offset}], {{{{{names}}}}};"
    ins = [address, *(("r", word) for word in words)]
    if exists is not None:
        text = f"{{{{ .reg .pred p; setp.ne.s32 p, {{i[{len(ins)}]}}, 0; @p {text} }}}}"
        ins.append(("r", exists))
    ptx.emit(text, "", ins, volatile=True)
