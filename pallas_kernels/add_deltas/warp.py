"""What one warp of `kernel_sm90` does, in instructions."""

import dataclasses

from pallas_kernels import ptx
from pallas_kernels.add_deltas.config import LANE, TILE, AddDeltasConfig
from pallas_kernels.integers import at_least, below, integer, least, plus, times, times_plus
from pallas_kernels.mosaic import ceil_div
from pallas_kernels.ptx import Value
from pallas_kernels.quantize_rows import registers as regs

WARPS = 4  # in a warpgroup
LANES = 32
WORDS = LANE // 4  # of a lane's codes of a layer
_MAGIC = 0x4B000000  # 2²³, whose last bit is worth 1
_MAGIC_ZERO = float(2**23 + 128)


@dataclasses.dataclass(frozen=True)
class Division:
    slots: int
    m: int
    k: int
    layers: int
    config: AddDeltasConfig

    @property
    def tiles(self) -> int:
        return self.m * self.k // TILE

    @property
    def ctas(self) -> int:
        return ceil_div(self.tiles, WARPS * self.config.warpgroups)

    @property
    def ahead(self) -> int:
        return min(self.config.ahead, self.layers)

    @property
    def turns(self) -> int:
        """Of the loop: each adds as many layers as are under way, and brings as many.

        What comes after it brings some too. Without a load to wait for ptxas would make the numbers of all layers that
        are left at once, and take 88 registers for 64.
        """
        return max(0, (self.layers - 1) // self.ahead - 1)

    @property
    def shares(self) -> int:
        """Layers whose place and scale a lane brings."""
        return ceil_div(self.layers, LANES)


@dataclasses.dataclass(frozen=True)
class State:
    """In a lane's registers, from turn to turn: of its layers' shares, of the layers under way, and the sums."""

    places: list[Value]
    words: list[Value]
    scales: list[Value]
    sums: list[Value]


class Warp:
    """It is told where arrays begin."""

    def __init__(self, division: Division, cta: Value, x: Value, codes: Value, scale: Value, places: Value) -> None:
        self.division, self.arrays = division, (x, codes, scale, places)
        thread = ptx.thread_in_cta()
        self.lane, warp = integer("and.b32 {o[0]}, {i[0]}, 31;", thread), integer("shr.u32 {o[0]}, {i[0]}, 5;", thread)
        tile = times_plus(cta, WARPS * division.config.warpgroups, warp)
        # A warp without a tile reads the last one, and stores nothing.
        self.exists = below(tile, division.tiles) if division.tiles % (WARPS * division.config.warpgroups) else None
        self.tile = least(tile, division.tiles - 1)
        # This lane's first value, in an array of x's shape.
        self.first = times_plus(self.tile, TILE, times(self.lane, LANE))

    def begin(self) -> State:
        division, (x, _, scale, places) = self.division, self.arrays
        token = integer(f"div.u32 {{o[0]}}, {{i[0]}}, {division.k // TILE};", self.tile)
        found = [self._place(places, share) for share in range(division.shares)]
        words = [word for layer in range(division.ahead) for word in self._codes(found, ptx.constant(layer, "r"))]
        scales = [ptx.load_global(scale, times_plus(place, division.m, token)) for place in found]
        origin = ptx.global_address(x, self.first, 2)
        pairs = [word for half in (0, 16) for word in ptx.load_sixteen("ld.global", ("l", origin), half, None)]
        return State(found, words, scales, [value for pair in pairs for value in regs.as_floats(pair)])

    def _place(self, places: Value, share: int) -> Value:
        """Of this lane's layer; beyond the last layer that of the last."""
        division = self.division
        layer = least(plus(self.lane, LANES * share), division.layers - 1)
        return least(at_least(ptx.load_global(places, layer, "r"), 0), division.slots - 1)

    def _codes(self, places: list[Value], layer: Value) -> list[Value]:
        size = self.division.m * self.division.k
        place = of_layer(places, layer, "r")
        origin = ptx.op(
            f"mad.wide.u32 {{o[0]}}, {{i[0]}}, {size}, {{i[1]}};",
            "l",
            ("r", place),
            ("l", ptx.global_address(self.arrays[1], self.first, 1)),
        )
        return regs.load(origin, 0, None)

    def turn(self, first: Value, state: State, layers: int, more: int) -> State:
        """Add so many layers from `first` on, and bring so many of those that follow what is under way."""
        words, sums = list(state.words), state.sums
        for j in range(layers):
            if j < more:
                following = plus(first, self.division.ahead + j)
                words += self._codes(state.places, following)
            scale = of_layer(state.scales, plus(first, j), "f")
            deltas = [code for word in words[:WORDS] for code in codes_of(word)]
            words = words[WORDS:]
            sums = [ptx.fma(code, scale, total) for code, total in zip(deltas, sums, strict=True)]
        return State(state.places, words, state.scales, sums)

    def end(self, first: Value, state: State) -> None:
        """Add the layers that are left, and store."""
        division = self.division
        left = division.layers - division.turns * division.ahead
        sums = self.turn(first, state, left, left - division.ahead).sums
        to = ptx.global_address(self.arrays[0], self.first, 2)
        for half in (0, 8):
            pairs = [ptx.to_bf16(sums[half + i : half + i + 2]) for i in range(0, 8, 2)]
            regs.store(to, 2 * half, pairs, self.exists)


def codes_of(word: Value) -> list[Value]:
    """Of four bytes, the first lowest, each as an f32."""
    shifted = integer("xor.b32 {o[0]}, {i[0]}, 0x80808080;", word)
    # Byte 3 of the constant, two of its zeros, and the byte wanted.
    text = "{{{{ .reg .b32 a; prmt.b32 a, {{i[0]}}, {{i[1]}}, {}; mov.b32 {{o[0]}}, a; }}}}"
    ins = ("r", shifted), ("r", ptx.constant(_MAGIC, "r"))
    numbers = [ptx.op(text.format(hex(0x7440 + byte)), "f", *ins) for byte in range(4)]
    return [ptx.subtract(number, ptx.constant(_MAGIC_ZERO, "f")) for number in numbers]


def of_layer(shares: list[Value], layer: Value, kind: str) -> Value:
    """What the lane has that brought this layer's."""
    chosen = shares[0]
    for i, share in enumerate(shares[1:], 1):
        text = (
            f"{{{{ .reg .pred p; setp.lt.u32 p, {{i[0]}}, {LANES * i}; selp.b32 {{o[0]}}, {{i[1]}}, {{i[2]}}, p; }}}}"
        )
        chosen = ptx.op(text, kind, ("r", layer), (kind, chosen), (kind, share))
    # Of the layer its last five bits count.
    text = "shfl.sync.idx.b32 {o[0]}, {i[0]}, {i[1]}, 31, 0xffffffff;"
    return ptx.emit(text, kind, [(kind, chosen), ("r", layer)], volatile=True)[0]
