"""What can be tuned in the fused NVFP4 matmul, and a choice for every shape."""

import dataclasses
from pathlib import Path

from pallas_kernels.tables import lookup

TABLE = Path(__file__).with_name("tuned.json")

CHUNK = 256  # of K at a time: 128 bytes of codes
# Beyond it a stage of tokens and a tile of results, 128 channels in f32, do not both fit in shared memory. Nor is there
# anything to win: the tensor cores, not the memory, set the pace, and an expanded weight serves as well.
MOST_TOKENS = 208


@dataclasses.dataclass(frozen=True)
class FusedConfig:
    parts: int = 1  # K is cut into, so that enough CTAs read
    stages: int = 3
    cluster: int = 1  # CTAs that share the tokens they load
    inside: bool = False  # finish in the kernel; of one part only
    groups: int = 1  # of decoding warpgroups in a CTA, which take chunks in turn; two need an even number of stages
    tiles: int = 0


def choose_config(m: int, k: int, n: int, kind: str) -> FusedConfig:
    """Tuned if this case was measured on this kind of device, else by rule."""
    return lookup(TABLE, kind, case_name(m, k, n), FusedConfig) or _by_rule(m, k, n)


def case_name(m: int, k: int, n: int) -> str:
    return f"m{(m - 1).bit_length()} k{k} n{n}"


def _by_rule(m: int, k: int, n: int) -> FusedConfig:
    """One wave of CTAs, as far as K can be cut: the registers of one, for decoding, are all that an SM has.

    Up to 16 tokens a second pair of decoding warpgroups pays: 21.4 µs instead of 24.5 for one token on an H200, at 5120
    x 13824.
    """
    chunks, tiles = k // CHUNK, n // 128
    parts = max(p for p in range(1, chunks + 1) if chunks % p == 0 and (p == 1 or p * tiles <= 132))
    stages = 6 if m <= 16 else 3 if m <= 64 else 2 if m <= 128 else 1
    whole = parts == 1 and m <= 16
    pairs = min(stages, chunks) % 2 == 0
    return FusedConfig(parts=parts, stages=stages, inside=whole, groups=2 if whole and pairs else 1)
