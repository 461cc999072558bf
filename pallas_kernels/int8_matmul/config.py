"""What can be tuned in the INT8 matmul, and a choice for every shape."""

import dataclasses
from pathlib import Path

from pallas_kernels.mosaic import CTA_BYTES, H200_SMS, ceil_div
from pallas_kernels.tables import lookup

TABLE = Path(__file__).with_name("tuned.json")

TILE_K = 128  # bytes of K a step: one 128-byte swizzle row, and one group of a block-scaled activation
PIECE = 64  # the epilogue leaves through shared memory in squares of this side
SHARED_MEMORY = CTA_BYTES - 448  # bytes a CTA may plan with; barriers take the rest


@dataclasses.dataclass(frozen=True)
class Int8MatmulConfig:
    """Tiles are per warpgroup; two or three warpgroups multiply, side by side along `split`, one more loads."""

    tile_m: int = 128
    tile_n: int = 128
    stages: int = 4  # K steps in flight
    slots: int = 2  # epilogue squares in flight, per warpgroup
    split: str = "m"
    cluster: str | None = None  # CTAs paired along "m" share B, along "n" share A, by multicast
    minor: str = "n"  # the direction consecutive tiles advance in
    multipliers: int = 2
    band: int = 8  # how wide the band of tiles is that the CTAs sweep together (reuse in L2)

    @property
    def cta_tile(self) -> tuple[int, int]:
        times = {self.split: self.multipliers}
        return self.tile_m * times.get("m", 1), self.tile_n * times.get("n", 1)

    @property
    def shared_memory(self) -> int:
        """Bytes of a CTA: operands, squares on their way out, scales of rows, and up to three vectors."""
        rows, columns = self.cta_tile
        squares = 2 * PIECE**2 * self.multipliers * self.slots
        return self.stages * (rows + columns) * TILE_K + squares + 4 * (rows + 3 * columns)

    @property
    def cluster_size(self) -> int:
        return 1 if self.cluster is None else 2

    def grid(self, m: int, n: int) -> tuple[int, int]:
        """Cluster tiles along m and n; the last of each may hang over the edge."""
        tile_m, tile_n = self.cta_tile
        return (
            ceil_div(m, tile_m * (1 + (self.cluster == "m"))),
            ceil_div(n, tile_n * (1 + (self.cluster == "n"))),
        )


def choose_config(m: int, k: int, n: int, *, grouped: bool, gated: bool, kind: str) -> Int8MatmulConfig:
    """Tuned if this case was measured on this kind of device, else by rule."""
    case = case_name(m, k, n, grouped=grouped, gated=gated)
    return lookup(TABLE, kind, case, Int8MatmulConfig) or _by_rule(m, n, grouped)


def case_name(m: int, k: int, n: int, *, grouped: bool, gated: bool) -> str:
    """Row counts are told apart by powers of two up to 2^15: what matters is how many waves of tiles there are."""
    kind = "grouped " if grouped else ""
    return f"{kind}{'gated ' if gated else ''}m{min((m - 1).bit_length(), 15)} k{k} n{n}"


def _by_rule(m: int, n: int, grouped: bool) -> Int8MatmulConfig:
    if grouped:
        # The f32 sums live beside the s32 products, so a tile has half the rows.
        return Int8MatmulConfig(tile_m=64, tile_n=128, stages=5)
    if m <= 1024:
        return Int8MatmulConfig(tile_m=64, tile_n=64, stages=6)
    # Wide tiles move least, and what limits is power: from two waves of them on up to 7 % ahead of 128 columns at the
    # shapes of Wan (two of eight lose 1 %), and 1 to 4 % with a residual. More squares for that to come in by, and
    # fewer stages, lose 12 %.
    if m * n >= 2 * H200_SMS * 256 * 192:
        return Int8MatmulConfig(tile_n=192, stages=3, band=even_band(n, 192))
    return Int8MatmulConfig()


def even_band(n: int, columns: int) -> int:
    """Near eight tiles, so that the last band is not much narrower: that one reads more for each product.

    Three bands of nine instead of 8 + 8 + 8 + 3 are 2 % at 75,600 x 5120, and nothing at 32,760.
    """
    return min((8, 9, 10, 7), key=lambda band: -ceil_div(n, columns) % band)
