"""The static facts of one warpgroup's work on one block of keys: how many registers of what."""

import dataclasses

from pallas_kernels.attention_int8.config import CONSUMERS, AttentionConfig
from pallas_kernels.attention_int8.numbers import HEAD, ONES, PEAK_8BIT, ROWS
from pallas_kernels.mosaic import WARPGROUP, ceil_div

VECTOR = 4  # values of a 16-byte access
STAGED = ROWS * HEAD * 2  # bytes of a warpgroup's output in bf16


@dataclasses.dataclass(frozen=True)
class Tile:
    """Counts are 32-bit registers a thread."""

    qk: str  # operands of the first product: "s8" or "bf16"
    pv: str  # of the second: "e4m3", "f16" or "bf16"
    config: AttentionConfig

    @property
    def keys(self) -> int:
        return self.config.block_kv

    @property
    def scores(self) -> int:
        return self.keys // 2

    @property
    def score_kind(self) -> str:
        return "r" if self.qk == "s8" else "f"

    @property
    def weights(self) -> int:
        return self.keys // 8 if self.pv == "e4m3" else self.keys // 4

    @property
    def columns(self) -> int:
        """Of the second product: the head and, in 8 bits, the columns of ones."""
        return HEAD + ONES if self.pv == "e4m3" else HEAD

    @property
    def accumulators(self) -> int:
        return self.columns // 2

    @property
    def outputs(self) -> int:
        """Accumulators and the sums of the two rows, unless the column of ones alone holds them."""
        return self.accumulators + (0 if self.pv == "e4m3" and not self.promotes else 2)

    @property
    def peak(self) -> float:
        """log2 of what the largest weight of a row becomes."""
        return PEAK_8BIT if self.pv == "e4m3" else 0.0

    @property
    def promotes(self) -> bool:
        return self.pv == "e4m3" and self.config.promote > 0

    @property
    def totals(self) -> int:
        """16-byte vectors of a thread's promoted sums; the last is the maxima they belong to."""
        return HEAD // 2 // VECTOR + 1

    def staged(self, with_totals: bool) -> int:
        """Outputs of a warpgroup that fit where they are staged: one each, or as many as the totals need."""
        return ceil_div(CONSUMERS * self.totals * WARPGROUP * 4 * VECTOR, STAGED) if with_totals else CONSUMERS
