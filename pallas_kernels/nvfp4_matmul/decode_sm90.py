"""Codes and scales of NVFP4 to bf16, in the registers of one thread.

A word of eight codes takes fifteen instructions, its scale's product included:

- Masked and shifted, the codes i and i + 4, sixteen bits apart, become a pair of bf16 whose exponent field holds the
  two exponent bits of E2M1: the value times 2^-126, 0.5 included, as a subnormal. Its sign belongs seven bits above the
  magnitude, but stands next to it. One shift and one selection part them for two pairs at once; then a shift and a mask
  make each pair. That is eleven for four pairs.
- A block scale, e4m3 and normal, becomes a bf16 times 2^119 by a product and an addition. 448 just fits.
- One bf16x2 product a pair removes both, up to 2^-7, and is exact: code × scale has six significant bits.
"""

from pallas_kernels import ptx
from pallas_kernels.ptx import Value

PAIR = "0x81C081C0"  # the bits of a sign and a magnitude, twice
SELECT = "0xE4"  # the first operand where the third has ones, else the second


def pairs(word: Value) -> list[Value]:
    """Codes i and i + 4 of a word as two bf16, their values times 2^-126, for i = 0 to 3: `emulation.pair_bits`.

    Either selection leaves two codes in each half, their signs seven bits above their magnitudes; what else it leaves
    the masks remove.
    """
    low = _with_t(f"shl.b32 t, {{i[0]}}, 6; lop3.b32 {{o[0]}}, t, {{i[0]}}, 0x22002200, {SELECT};", word)
    high = _with_t(f"shr.u32 t, {{i[0]}}, 6; lop3.b32 {{o[0]}}, t, {{i[0]}}, 0x01DC01DC, {SELECT};", word)
    moved = [(low, 6), (low, 2), (high, 4), (high, 0)]
    return [_with_t(f"shl.b32 t, {{i[0]}}, {by}; and.b32 {{o[0]}}, t, {PAIR};", x) for x, by in moved]


def factor(scale: Value) -> Value:
    """The byte of an e4m3 as a pair of equal bf16, times 2^119: `emulation.scale_bits`."""
    return _with_t("and.b32 t, {i[0]}, 0x7F; mad.lo.u32 {o[0]}, t, 0x100010, 0x77807780;", scale)


def product(pair: Value, factor: Value) -> Value:
    return ptx.op("mul.rn.bf16x2 {o[0]}, {i[0]}, {i[1]};", "r", ("r", pair), ("r", factor))


def _with_t(text: str, x: Value) -> Value:
    """A few instructions with one result and a register `t` between."""
    return ptx.op("{{ .reg .b32 t; " + text + " }}", "r", ("r", x))
