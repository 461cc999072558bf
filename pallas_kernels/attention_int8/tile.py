"""The static facts of one warpgroup's work on one block of keys: how many registers of what."""

import dataclasses

from pallas_kernels.attention_int8.config import AttentionConfig
from pallas_kernels.attention_int8.numbers import HEAD, ONES, PEAK_8BIT


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
        """Accumulators and, without a column of ones, the sums of the two rows."""
        return self.accumulators + (0 if self.pv == "e4m3" else 2)

    @property
    def peak(self) -> float:
        """log2 of what the largest weight of a row becomes."""
        return PEAK_8BIT if self.pv == "e4m3" else 0.0
