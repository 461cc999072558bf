"""What one lane does in `warps_sm90`: which weights and tokens it holds, their products, and the sums of its warps.

A warp multiplies sixteen rows with sixteen columns and eight tokens at a time. Of the left operand lane 4g + c holds
four pairs, of two rows and of the columns 2c, 2c + 1, 2c + 8 and 2c + 9; of the right one the same columns of token g.
Any order of K will do if both share it. Here lane c of four takes the block c of 64 columns: its codes are two words,
its scale a byte, its tokens 32 bytes, and all of these lie as they do in device memory. A word decodes to pairs of the
columns i and i + 4, so tokens are paired that way too, once for all rows of a CTA.

Any order of rows will do as well. Those of g are 0, 2, 4, 6, 1, 3, 5, 7, so that in swizzled memory no two of sixteen
lanes that load at once meet in a bank.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jaxlib.mlir import ir

from pallas_kernels import ptx
from pallas_kernels.mosaic import ceil_div
from pallas_kernels.nvfp4_matmul.config import SPAN
from pallas_kernels.nvfp4_matmul.decode_sm90 import factor, pairs, product
from pallas_kernels.nvfp4_matmul.emulation import SCALE_BACK, SLICE
from pallas_kernels.ptx import Value

ROWS = 16  # of a product
TOKENS = 8
SLICES = SPAN // SLICE  # and as many warps, of a group
WORDS, BLOCKS = SPAN // 8, SPAN // 16
EIGHT_ROWS = 8 * 4 * WORDS  # bytes of words
TILE = 8 * 128  # bytes of eight rows of 128: swizzled


@dataclasses.dataclass(frozen=True)
class Share:
    """Of a CTA: `tiles` times sixteen rows, all columns, all tokens."""

    m: int
    k: int
    n: int
    tiles: int
    groups: int  # of eight warps, which take spans in turn

    @property
    def rows(self) -> int:
        return ROWS * self.tiles

    @property
    def eights(self) -> int:
        """Of tokens."""
        return ceil_div(self.m, TOKENS)

    @property
    def sums(self) -> int:
        """Registers of a lane."""
        return 4 * self.tiles * self.eights

    @property
    def held(self) -> int:
        """Registers of a lane's tokens in a span."""
        return 8 * self.eights

    @property
    def spans(self) -> int:
        return ceil_div(self.k, SPAN)

    @property
    def threads(self) -> int:
        """That multiply."""
        return 32 * SLICES * self.groups

    @property
    def items(self) -> int:
        """Pairs of rows, for all tokens, that a thread finishes."""
        return ceil_div(self.m * self.rows // 2, self.threads)

    @property
    def line(self) -> int:
        """Values from one token's sums to the next, in shared memory: four more than rows, against bank conflicts."""
        return self.rows + 4

    @property
    def plane(self) -> int:
        """Values of one warp's sums."""
        return self.eights * TOKENS * self.line


class Lane:
    def __init__(self, share: Share) -> None:
        self.share = share
        self.thread = ptx.thread_in_cta()
        self.c = ptx.thread_column()
        self.g = _int("{{ .reg .b32 t; shr.u32 t, {i[0]}, 2; and.b32 {o[0]}, t, 7; }}", self.thread)
        self.warp = _int("shr.u32 {o[0]}, {i[0]}, 5;", self.thread)
        self.slice = _int(f"and.b32 {{o[0]}}, {{i[0]}}, {SLICES - 1};", self.warp)

    @functools.cached_property
    def row(self) -> Value:
        """The first of its two rows of a product; the second is eight further."""
        text = "{{ .reg .b32 t, u; and.b32 t, {i[0]}, 3; shr.u32 u, {i[0]}, 2; mad.lo.u32 {o[0]}, t, 2, u; }}"
        return _int(text, self.g)

    # Operands.

    def tokens(self, x: Value, span: Value) -> list[Value]:
        """The sixteen columns of its block of each token it holds, zeros beyond the last column and token."""
        share, found = self.share, []
        column = _mad(span, SPAN, _mad(self.slice, SLICE, _mad(self.c, 16, ptx.constant(0, "r"))))
        text = "{{ .reg .b64 p; mad.wide.s32 p, {i[1]}, 2, {i[0]}; cvta.to.global.u64 {o[0]}, p; }}"
        start = ptx.op(text, "l", ("l", ptx.address(x)), ("r", _mad(self.g, share.k, column)))
        for eight in range(share.eights):
            here = _below(column, share.k, None)
            if eight == share.eights - 1 and share.m % TOKENS:
                here = _below(self.g, share.m - TOKENS * eight, here)
            for half in range(2):
                offset = 2 * (TOKENS * eight * share.k + 8 * half)
                found += ptx.load_sixteen("ld.global.nc", ("l", start), offset, here)
        return found

    def staged_tokens(self, x: Value) -> list[Value]:
        """The same from shared memory: of each eight tokens a tile for each warp, swizzled as words are.

        Eight lanes that load sixteen bytes at once have two tokens, whose places are even and odd, or the reverse.
        """
        text = "{{ .reg .b32 t; shl.b32 t, {i[0]}, 1; xor.b32 t, t, {i[1]}; mad.lo.u32 {o[0]}, t, 16, 0; }}"
        even = _mad(self.g, 128, _int(text, self.c, self.g))  # of its sixteen columns, the first half
        odd = _int("xor.b32 {o[0]}, {i[0]}, 16;", even)
        start = _mad(self.slice, TILE, ptx.shared_address(x))
        addresses = [_int("add.u32 {o[0]}, {i[0]}, {i[1]};", start, half) for half in (even, odd)]
        found = []
        for eight in range(self.share.eights):
            for address in addresses:
                found += ptx.load_words(address, SLICES * TILE * eight, 4)
        return found

    def weights(self, words: Value, scales: Value) -> Iterator[list[Value]]:
        """By sixteen rows, sixteen pairs: those of a row and of the row eight further take turns."""
        word_address, scale_address = self._word_address(words), self._scale_address(scales)
        for tile in range(self.share.tiles):
            rows = [self._block(word_address, scale_address, 2 * tile + half) for half in range(2)]
            yield [pair for both in zip(*rows, strict=True) for pair in both]

    def _block(self, word_address: Value, scale_address: Value, eight: int) -> list[Value]:
        scale = factor(ptx.load_byte(scale_address, 8 * BLOCKS * eight))
        words = ptx.load_words(word_address, EIGHT_ROWS * eight, 2)
        return [product(pair, scale) for word in words for pair in pairs(word)]

    def _word_address(self, words: Value) -> Value:
        """A row's 32 bytes of a warp are two of eight places in a line of 128, at `place ^ row`; a lane takes half of
        one."""
        text = (
            "{{ .reg .b32 t, u; and.b32 t, {i[1]}, 3; shl.b32 t, t, 1; shr.u32 u, {i[2]}, 1; or.b32 t, t, u; "
            "xor.b32 t, t, {i[3]}; mad.lo.u32 t, t, 16, {i[0]}; and.b32 u, {i[2]}, 1; mad.lo.u32 t, u, 8, t; "
            f"shr.u32 u, {{i[1]}}, 2; mad.lo.u32 t, u, {TILE}, t; mad.lo.u32 {{o[0]}}, {{i[3]}}, 128, t; }}}}"
        )
        return _int(text, ptx.shared_address(words), self.slice, self.c, self.row)

    def _scale_address(self, scales: Value) -> Value:
        within = _mad(self.slice, SLICE // 16, _mad(self.c, 1, ptx.shared_address(scales)))
        return _mad(self.row, BLOCKS, within)

    # Sums.

    def keep(self, sums: list[Value], memory: Value) -> None:
        """This warp's sums in shared memory, rows next to each other."""
        share = self.share
        place = _mad(self.warp, share.plane, _mad(self.c, 2 * share.line, self.row))
        address = _mad(place, 4, ptx.shared_address(memory))
        for i, x in enumerate(sums):
            product, (row, token) = i // 4, divmod(i % 4, 2)
            tile, eight = divmod(product, share.eights)
            offset = (TOKENS * eight + token) * share.line + ROWS * tile + 8 * row
            ptx.emit(
                f"st.shared.b32 [{{i[0]}} + {4 * offset}], {{i[1]}};", "", [("r", address), ("f", x)], volatile=True
            )

    def vectors(self, tile: Value, vectors: Sequence[Any]) -> list[Value]:
        """By pair of rows that this thread will finish, the pair's values of each vector."""
        found = []
        for item in range(self.share.items):
            *_, row, _ = self._item(tile, item)
            found += [x for values in vectors for x in _of_rows(values, row)]
        return found

    def finish(self, tile: Value, memory: Value, vectors: list[Value], out: Any) -> None:
        """All warps' sums, in their order, of pairs of rows: scaled, moved by the bias, rounded, stored."""
        per_item = len(vectors) // self.share.items
        for item in range(self.share.items):
            token, pair, row, here = self._item(tile, item)
            # Where there is nothing, the first pair is added up once more and not stored.
            place = _where(here, _mad(token, self.share.line, _mad(pair, 2, ptx.constant(0, "r"))))
            its = vectors[per_item * item : per_item * (item + 1)]
            pair_sums = _finished(self._sums(place, memory), its[:2], its[2:])
            _store(out, _mad(token, self.share.n, row), pair_sums, here)

    def _item(self, tile: Value, item: int) -> tuple[Value, Value, Value, Value]:
        """Token, pair of rows in the CTA, its first row (zero where there is none), and whether it exists."""
        share = self.share
        number = ptx.add(self.thread, ptx.constant(item * share.threads, "r"), "r")
        token, pair = (_int(f"{name}.u32 {{o[0]}}, {{i[0]}}, {share.rows // 2};", number) for name in ("div", "rem"))
        row = _mad(pair, 2, _mad(tile, share.rows, ptx.constant(0, "r")))
        here = _below(row, share.n, _below(token, share.m, None))
        return token, pair, _where(here, row), here

    def _sums(self, place: Value, memory: Value) -> list[Value]:
        address = _mad(place, 4, ptx.shared_address(memory))
        total: list[Value] = []
        for warp in range(SLICES * self.share.groups):
            found = ptx.load_floats(address, 4 * warp * self.share.plane)
            total = [ptx.add(*x) for x in zip(total, found, strict=True)] if total else found
        return total


def multiply(sums: list[Value], weights: Iterable[list[Value]], tokens: list[Value]) -> list[Value]:
    """Sums by sixteen rows, eight tokens, row and token."""
    right = [pair for i in range(0, len(tokens), 4) for pair in token_pairs(tokens[i : i + 4])]
    found = []
    for tile, left in enumerate(weights):
        for eight in range(len(right) // 8):
            first = 4 * (tile * (len(right) // 8) + eight)
            four = sums[first : first + 4]
            for step in range(4):
                b = right[8 * eight + 2 * step : 8 * eight + 2 * step + 2]
                four = ptx.mma_bf16(left[4 * step : 4 * step + 4], *b, four)
            found += four
    return found


def token_pairs(words: list[Value]) -> list[Value]:
    """Columns i and i + 4 of eight, for i = 0 to 3."""
    pick = lambda a, b, bytes_: ptx.op(f"prmt.b32 {{o[0]}}, {{i[0]}}, {{i[1]}}, {bytes_};", "r", ("r", a), ("r", b))
    return [pick(words[i], words[i + 2], bytes_) for i in range(2) for bytes_ in ("0x5410", "0x7632")]


def _of_rows(values: Any, row: Value) -> list[Value]:
    """Two of values f32 (n,) from a row on; of (1,) the only one, twice."""
    if ir.MemRefType(values.type).shape == [1]:
        return [ptx.load_global(values, ptx.constant(0, "r"))] * 2
    return [ptx.load_global(values, ptx.add(row, ptx.constant(i, "r"), "r")) for i in range(2)]


def _finished(sums: list[Value], factors: list[Value], moved: list[Value]) -> list[Value]:
    back = ptx.constant(SCALE_BACK, "f")
    scales = [ptx.multiply(x, back) for x in factors]
    if not moved:
        return [ptx.multiply(x, scale) for x, scale in zip(sums, scales, strict=True)]
    return [ptx.fma(x, scale, y) for x, scale, y in zip(sums, scales, moved, strict=True)]


def _store(out: Any, place: Value, pair: list[Value], here: Value) -> None:
    """Two neighbours, from an even place on."""
    if ir.MemRefType(out.type).element_type == ir.BF16Type.get():
        size, kind, ins = 2, "b32 [p], {i[3]}", [("r", ptx.to_bf16(pair))]
    else:
        size, kind, ins = 4, "v2.f32 [p], {{{i[3]}, {i[4]}}}", [("f", x) for x in pair]
    text = (
        f"{{{{ .reg .b64 p; .reg .pred q; mad.wide.s32 p, {{i[1]}}, {size}, {{i[0]}}; cvta.to.global.u64 p, p; "
        f"setp.ne.s32 q, {{i[2]}}, 0; @q st.global.{kind}; }}}}"
    )
    ptx.emit(text, "", [("l", ptx.address(out)), ("r", place), ("r", here), *ins], volatile=True)


def _int(text: str, *operands: Value) -> Value:
    return ptx.op(text, "r", *(("r", x) for x in operands))


def _mad(x: Value, factor: int, offset: Value) -> Value:
    return _int(f"mad.lo.u32 {{o[0]}}, {{i[0]}}, {factor}, {{i[1]}};", x, offset)


def _below(x: Value, bound: int, and_: Value | None) -> Value:
    text = f"{{{{ .reg .pred p; setp.lt.s32 p, {{i[0]}}, {bound}; selp.b32 {{o[0]}}, {{i[1]}}, 0, p; }}}}"
    return _int(text, x, ptx.constant(1, "r") if and_ is None else and_)


def _where(here: Value, x: Value) -> Value:
    """Else zero."""
    return _int("{{ .reg .pred p; setp.ne.s32 p, {i[0]}, 0; selp.b32 {o[0]}, {i[1]}, 0, p; }}", here, x)
