"""What can be tuned in the fused NVFP4 matmul, and a choice for every shape."""

import dataclasses
from pathlib import Path

from pallas_kernels.mosaic import H200_SMS, ceil_div
from pallas_kernels.tables import lookup

TABLE = Path(__file__).with_name("tuned.json")

CHUNK = 256  # of K at a time: 128 bytes of codes
# Beyond it there is nothing to win: the tensor cores, not the memory, set the pace, and an expanded weight serves as
# well. Nor do two stages of tokens fit in shared memory.
MOST_TOKENS = 208


WARP_TOKENS = 32  # most of the products of single warps: with more, the sums alone take the registers there are
SPAN = 512  # of K at a time, there
SHARED_MEMORY = 226_000  # bytes a CTA may plan with


@dataclasses.dataclass(frozen=True)
class FusedConfig:
    """Of either kernel: `warps_sm90` if there are tiles, else `kernel_sm90`."""

    parts: int = 1  # K is cut into, so that enough CTAs read
    stages: int = 3
    cluster: int = 1  # CTAs that share the tokens they load
    inside: bool = False  # finish in the kernel; of one part only
    groups: int = 1  # of decoding warpgroups in a CTA, which take chunks in turn; two need an even number of stages
    # Of sixteen rows a CTA, by products of single warps; always finished inside. Parts and cluster are 1.
    tiles: int = 0
    early: bool = False  # start while the kernel before it ends, and let the next one do so
    ahead: int = 0  # so many stages are under way at most; 0 for all there are
    staged: bool = False  # with tiles, `staged_sm90`: tokens come through shared memory too, cluster is allowed


def choose_config(m: int, k: int, n: int, kind: str) -> FusedConfig:
    """Tuned if this case was measured on this kind of device, else by rule."""
    return lookup(TABLE, kind, case_name(m, k, n), FusedConfig) or _by_rule(m, k, n)


def case_name(m: int, k: int, n: int) -> str:
    return f"m{(m - 1).bit_length()} k{k} n{n}"


def eights(m: int) -> int:
    """Of tokens: as many as a product of warps takes."""
    return ceil_div(m, 8)


def warp_bytes(m: int, config: FusedConfig) -> int:
    """Shared memory of a CTA with tiles: stages of codes and scales, and the sums of every warp."""
    rows, tokens = 16 * config.tiles, 8 * eights(m)
    stages, sums = config.stages * rows * SPAN * 9 // 16, config.groups * 8 * 4 * (rows + 4) * tokens
    return max(stages + config.stages * tokens * SPAN * 2, sums) if config.staged else stages + sums


def _by_rule(m: int, k: int, n: int) -> FusedConfig:
    return _warps_by_rule(m, k, n) if m <= WARP_TOKENS else _warpgroups_by_rule(k, n, m)


def _warps_by_rule(m: int, k: int, n: int) -> FusedConfig:
    """As few tiles as make full waves. Two groups as long as their registers do, and so many bytes under way.

    Sixteen tokens come through the stages: 17.5 µs instead of 19.8, where eight gain nothing. Eight begin early.
    """
    waves = ceil_div(n, 16 * 8 * H200_SMS)
    tiles = ceil_div(n, 16 * waves * H200_SMS)
    groups = 2 if m <= 8 and k > SPAN else 1
    stages = range(groups, min(12, ceil_div(k, SPAN)) + 1, groups)
    staged = 8 < m <= 16
    plan = FusedConfig(groups=groups, tiles=tiles, staged=staged, early=m <= 8)
    plans = [dataclasses.replace(plan, stages=count) for count in stages]
    return [plan for plan in plans if warp_bytes(m, plan) <= SHARED_MEMORY][-1]


def _warpgroups_by_rule(k: int, n: int, m: int) -> FusedConfig:
    """One wave of CTAs, as far as K can be cut: the registers of one, for decoding, are all that an SM has."""
    chunks, tiles = k // CHUNK, n // 128
    parts = max(p for p in range(1, chunks + 1) if chunks % p == 0 and (p == 1 or p * tiles <= H200_SMS))
    if parts == 1 and m <= 64:
        # Finished inside it is one kernel, not two, as long as all of it fits in shared memory. Two groups: 25.2 µs at
        # 64 tokens for 27.3.
        paired = min(4, chunks) % 2 == 0
        return FusedConfig(stages=4 if paired else 3, inside=True, groups=2 if paired else 1)
    return FusedConfig(parts=parts, stages=3 if m <= 64 else 2 if m <= 128 else 1)
