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
    # Of decoding warpgroups in a CTA, which take stages in turn. Two need an even number of stages, and more registers
    # than there are beyond 40 tokens.
    groups: int = 1
    span: int = 1  # chunks a stage, a divisor of those of a part
    # Of K, multiplied at once: 64, 128 or 256. More are fewer instructions, but then products wait for more decoding.
    depth: int = 64


def choose_config(m: int, k: int, n: int, kind: str) -> FusedConfig:
    """Tuned if this case was measured on this kind of device, else by rule."""
    return lookup(TABLE, kind, case_name(m, k, n), FusedConfig) or _by_rule(m, k, n)


def case_name(m: int, k: int, n: int) -> str:
    return f"m{(m - 1).bit_length()} k{k} n{n}"


def _by_rule(m: int, k: int, n: int) -> FusedConfig:
    """One wave of CTAs, as far as K can be cut: the registers of one, for decoding, are all that an SM has."""
    chunks, tiles = k // CHUNK, n // 128
    parts = max(p for p in range(1, chunks + 1) if chunks % p == 0 and (p == 1 or p * tiles <= 132))
    if m > 16:
        return FusedConfig(parts=parts, stages=3 if m <= 64 else 2 if m <= 128 else 1)
    span = 2 if chunks // parts % 2 == 0 else 1
    fills = chunks // parts // span
    stages = min(8 // span, fills - fills % 2)
    groups = 2 if stages else 1
    return FusedConfig(parts, max(stages, 1), inside=parts == 1, groups=groups, span=span, depth=128)
