"""Q·Kᵀ and P·V on the tensor cores, issued back to back in one asm statement so that nothing moves in between."""

from pallas_kernels import ptx
from pallas_kernels.attention_int8.tile import Tile
from pallas_kernels.ptx import Value

LINE = 128  # bytes of a swizzled row of Q and K
CORE = 8 * LINE  # bytes of eight such rows
TURN = 8  # the first of the named barriers that pass the turn; Mosaic GPU uses those below 8


class Asm:
    """Lines of PTX and their operands."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.out = ""
        self.tied: list[tuple[str, Value]] = []
        self.ins: list[tuple[str, Value]] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def fresh(self, kind: str, count: int) -> list[str]:
        first = len(self.out)
        self.out += kind * count
        return [f"{{o[{first + i}]}}" for i in range(count)]

    def tie(self, kind: str, values: list[Value]) -> list[str]:
        first = len(self.tied)
        self.tied += [(kind, value) for value in values]
        return [f"{{t[{first + i}]}}" for i in range(len(values))]

    def use(self, kind: str, *values: Value) -> list[str]:
        first = len(self.ins)
        self.ins += [(kind, value) for value in values]
        return [f"{{i[{first + i}]}}" for i in range(len(values))]

    def run(self) -> list[Value]:
        return ptx.emit("{{\n" + "\n".join(self.lines) + "\n}}", self.out, self.ins, self.tied, volatile=True)


def first_scores(tile: Tile, q: Value, k: Value) -> list[Value]:
    """S = Q·Kᵀ of the first block, alone."""
    asm = Asm()
    asm.line("wgmma.fence.sync.aligned;")
    _scores(asm, tile, q, k)
    asm.line("wgmma.wait_group.sync.aligned 0;")
    return asm.run()


def both(
    tile: Tile, o: list[Value], p: list[Value], q: Value, k: Value, v: Value, warpgroup: Value
) -> tuple[list[Value], list[Value]]:
    """O += P·V of one block, then S = Q·Kᵀ of the next. Returns (O, S).

    Tensor cores serve two warpgroups that ask at once by halves, both then finish late and leave them idle together.
    So a warpgroup waits for its turn, and passes it when its last product is nearly done.
    """
    config, asm = tile.config, Asm()
    if config.turns:
        own = ptx.add(warpgroup, ptx.constant(TURN, "r"), "r")
        other = ptx.op(f"sub.s32 {{o[0]}}, {2 * TURN + 1}, {{i[0]}};", "r", ("r", own))
        asm.line(f"bar.sync {asm.use('r', own)[0]}, 256;")
    asm.line("wgmma.fence.sync.aligned;")
    _outputs(asm, tile, o[: tile.accumulators], p, v)
    _scores(asm, tile, q, k, config.tail)
    if config.tail:
        asm.line("wgmma.wait_group.sync.aligned 1;")
    if config.turns:
        asm.line(f"bar.arrive {asm.use('r', other)[0]}, 256;")
    asm.line("wgmma.wait_group.sync.aligned 0;")
    result = asm.run()
    return result[tile.scores :] + o[tile.accumulators :], result[: tile.scores]


def last_outputs(tile: Tile, o: list[Value], p: list[Value], v: Value) -> list[Value]:
    """O += P·V of the last block, alone."""
    asm = Asm()
    asm.line("wgmma.fence.sync.aligned;")
    _outputs(asm, tile, o[: tile.accumulators], p, v)
    asm.line("wgmma.wait_group.sync.aligned 0;")
    return asm.run() + o[tile.accumulators :]


def give_first_turn(warpgroup: Value) -> None:
    """The second warpgroup lets the first begin."""
    text = f"{{{{ .reg .pred p; setp.eq.s32 p, {{i[0]}}, 1; @p bar.arrive {TURN}, 256; }}}}"
    ptx.emit(text, "", [("r", warpgroup)], volatile=True)


def take_last_turn(warpgroup: Value) -> None:
    """The turn that is left over, so that the barrier is as it was."""
    text = f"{{{{ .reg .pred p; setp.eq.s32 p, {{i[0]}}, 0; @p bar.sync {TURN}, 256; }}}}"
    ptx.emit(text, "", [("r", warpgroup)], volatile=True)


def wait_for_both() -> None:
    ptx.emit(f"bar.sync {TURN + 2}, 256;", volatile=True)


def _scores(asm: Asm, tile: Tile, q: Value, k: Value, tail: int = 0) -> None:
    """Into fresh registers. The last `tail` steps are a group of their own."""
    narrow = tile.qk == "s8"
    lines = 1 if narrow else 2  # swizzled lines of a row; cores of the second follow those of the first
    name, depth = ("s32.s8.s8", 32) if narrow else ("f32.bf16.bf16", 16)
    registers = _list(asm.fresh(tile.score_kind, tile.scores))
    a, b = asm.use("l", *(ptx.descriptor(x, stride=CORE * lines, swizzle=LINE) for x in (q, k)))
    asm.line(".reg .b64 qa, kb; .reg .pred never, always; setp.ne.b32 never, 0, 0; setp.eq.b32 always, 0, 0;")
    steps = 4 * lines
    for step in range(steps):
        if tail and step == steps - tail:
            asm.line("wgmma.commit_group.sync.aligned;")
        offset = (step // 4 * CORE + step % 4 * 32) >> 4
        asm.line(f"add.s64 qa, {a}, {offset}; add.s64 kb, {b}, {offset};")
        flags = ("never" if step == 0 else "always") + ("" if narrow else ", 1, 1, 0, 0")
        asm.line(f"wgmma.mma_async.sync.aligned.m64n{tile.keys}k{depth}.{name} {registers}, qa, kb, {flags};")
    asm.line("wgmma.commit_group.sync.aligned;")


def _outputs(asm: Asm, tile: Tile, acc: list[Value], p: list[Value], v: Value) -> None:
    """Onto the accumulators, P from registers."""
    registers, weights = _list(asm.tie("f", acc)), asm.use("r", *p)
    asm.line(".reg .b64 vb; .reg .pred yes; setp.eq.b32 yes, 0, 0;")
    if tile.pv == "e4m3":  # V lies channels by keys
        line = tile.config.swizzle_v
        (b,) = asm.use("l", ptx.descriptor(v, stride=8 * tile.keys, swizzle=line))
        name, depth, flags = "f32.e4m3.e4m3", 32, "yes, 1, 1"
        offsets = [key // line * 8 * line + key % line for key in range(0, tile.keys, depth)]
    else:  # keys by channels, in two halves: 1024 bytes apart, eight keys 2048
        (b,) = asm.use("l", ptx.descriptor(v, stride=2 * CORE, leading=CORE, swizzle=LINE))
        name, depth, flags = f"f32.{tile.pv}.{tile.pv}", 16, "yes, 1, 1, 1"
        offsets = [key * 2 * LINE for key in range(0, tile.keys, depth)]
    for step, offset in enumerate(offsets):
        a = _list(weights[4 * step : 4 * step + 4])
        asm.line(f"add.s64 vb, {b}, {offset >> 4};")
        asm.line(f"wgmma.mma_async.sync.aligned.m64n{tile.columns}k{depth}.{name} {registers}, {a}, vb, {flags};")
    asm.line("wgmma.commit_group.sync.aligned;")


def _list(names: list[str]) -> str:
    return "{{" + ", ".join(names) + "}}"
