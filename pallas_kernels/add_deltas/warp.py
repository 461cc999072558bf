"""What one warp of `kernel_sm90` does, in instructions."""

import dataclasses

from pallas_kernels import ptx
from pallas_kernels.add_deltas.config import LANE, TILE, AddDeltasConfig
from pallas_kernels.mosaic import ceil_div
from pallas_kernels.ptx import Value
from pallas_kernels.quantize_rows import registers as regs

WARPS = 4  # in a warpgroup
LANES = 32
_MAGIC = 0x4B000000  # 2²³, whose last bit is worth 1
_MAGIC_ZERO = float(2**23 + 128)
_TOP_BITS = "0x80808080"


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
    def lane_layers(self) -> int:
        """Layers whose place and scale a lane brings."""
        return ceil_div(self.layers, LANES)


class Warp:
    """Of device memory it is told where arrays begin."""

    def __init__(
        self, division: Division, cta: Value, x: Value, codes: Value, scale: Value, places: Value, out: Value
    ) -> None:
        self.division = division
        self.lane = _int("mov.u32 {o[0]}, %laneid;")
        self.places = [self._place(places, i) for i in range(division.lane_layers)]
        tile = self._tile(cta)
        token = _int(f"div.u32 {{o[0]}}, {{i[0]}}, {division.k // TILE};", tile)
        # Of this lane's first value, in an array of x's shape.
        first = _mad(tile, TILE, _mad(self.lane, LANE, ptx.constant(0, "r")))
        self.x, self.codes, self.out = (_address(*each) for each in ((x, first, 2), (codes, first, 1), (out, first, 2)))
        self.scales = [_load(_address(scale, _mad(place, division.m, token), 4), "f") for place in self.places]

    def _tile(self, cta: Value) -> Value:
        division = self.division
        warp = _int("{{ .reg .b32 a; mov.u32 a, %tid.x; shr.u32 {o[0]}, a, 5; }}")
        tile = _mad(cta, WARPS * division.config.warpgroups, warp)
        return _int(f"min.u32 {{o[0]}}, {{i[0]}}, {division.tiles - 1};", tile)

    def _place(self, places: Value, i: int) -> Value:
        """Of this lane's layer; beyond the last layer that of the last."""
        layer = _int(f"add.u32 {{o[0]}}, {{i[0]}}, {LANES * i};", self.lane)
        layer = _int(f"min.u32 {{o[0]}}, {{i[0]}}, {self.division.layers - 1};", layer)
        place = _int("max.s32 {o[0]}, {i[0]}, 0;", _load(_address(places, layer, 4), "r"))
        return _int(f"min.s32 {{o[0]}}, {{i[0]}}, {self.division.slots - 1};", place)

    def run(self) -> None:
        layers, ahead = self.division.layers, self.division.config.ahead
        under_way = [self._codes(layer) for layer in range(min(ahead, layers))]
        sums = [x for half in (0, 16) for word in self._input(half) for x in regs.as_floats(word)]
        for layer in range(layers):
            if layer + ahead < layers:
                under_way.append(self._codes(layer + ahead))
            scale = of_lane(self.scales[layer // LANES], layer % LANES, "f")
            deltas = [code for word in under_way.pop(0) for code in codes_of(word)]
            sums = [ptx.fma(code, scale, total) for code, total in zip(deltas, sums, strict=True)]
        words = [ptx.to_bf16(sums[i : i + 2]) for i in range(0, LANE, 2)]
        for half in (0, 16):
            regs.store(self.out, half, words[half // 4 : half // 4 + 4], None)

    def _input(self, offset: int) -> list[Value]:
        return ptx.load_sixteen("ld.global.nc", ("l", self.x), offset, None)

    def _codes(self, layer: int) -> list[Value]:
        place = of_lane(self.places[layer // LANES], layer % LANES, "r")
        size = self.division.m * self.division.k
        text = f"mad.wide.u32 {{o[0]}}, {{i[0]}}, {size}, {{i[1]}};"
        return regs.load(ptx.op(text, "l", ("r", place), ("l", self.codes)), 0, None)


def codes_of(word: Value) -> list[Value]:
    """Of four bytes, the first lowest, each as an f32."""
    shifted = _int(f"xor.b32 {{o[0]}}, {{i[0]}}, {_TOP_BITS};", word)
    # Byte 3 of the constant, two of its zeros, and the byte wanted.
    ins = ("r", shifted), ("r", ptx.constant(_MAGIC, "r"))
    numbers = [ptx.op(f"prmt.b32 {{o[0]}}, {{i[0]}}, {{i[1]}}, {0x7440 + byte:#x};", "r", *ins) for byte in range(4)]
    return [ptx.subtract(_as_float(x), ptx.constant(_MAGIC_ZERO, "f")) for x in numbers]


def _as_float(bits: Value) -> Value:
    return ptx.op("mov.b32 {o[0]}, {i[0]};", "f", ("r", bits))


def of_lane(x: Value, lane: int, kind: str) -> Value:
    return ptx.emit(f"shfl.sync.idx.b32 {{o[0]}}, {{i[0]}}, {lane}, 31, 0xffffffff;", kind, [(kind, x)], volatile=True)[0]


def _load(address: Value, kind: str) -> Value:
    return ptx.emit("ld.global.nc.b32 {o[0]}, [{i[0]}];", kind, [("l", address)], volatile=True)[0]


def _address(array: Value, index: Value, size: int) -> Value:
    """Of one of its values, in device memory."""
    text = f"{{{{ .reg .b64 p; mad.wide.u32 p, {{i[1]}}, {size}, {{i[0]}}; cvta.to.global.u64 {{o[0]}}, p; }}}}"
    return ptx.op(text, "l", ("l", array), ("r", index))


def _int(text: str, *operands: Value) -> Value:
    return ptx.op(text, "r", *(("r", x) for x in operands))


def _mad(x: Value, factor: int, offset: Value) -> Value:
    return _int(f"mad.lo.u32 {{o[0]}}, {{i[0]}}, {factor}, {{i[1]}};", x, offset)
