"""What can be tuned in the attention kernel, and a choice for every shape."""

import dataclasses
from pathlib import Path

from pallas_kernels.mosaic import ceil_div
from pallas_kernels.tables import lookup

TABLE = Path(__file__).with_name("tuned.json")
CONSUMERS = 2  # warpgroups that compute; a third loads
# What 8-bit sums lose (`fp8_sums`) grows with the keys between promotions, not with all: where a row attends alike to
# thousands of values of one sign, by the model 1.2 % at 900 keys, 2.7 % at 1,800, 5.5 % at 3,600, and far more with no
# promotion (22 % at 32,760). 900 is where it is what Q and K in INT8 cost anyway. Noise loses 0.1 % even at 9,000.
MOST_KEYS = 900
MOST_BITS = 15
FEW = 1024  # keys, such as a prompt's 512


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """The measured best of self-attention on an H200.

    224 keys are the most whose scores fit in registers beside the weights and the output.
    """

    block_kv: int = 224
    stages: int = 2  # blocks of keys and values in shared memory
    cluster: int = 2  # CTAs of one head that share what they load, by multicast
    linear: int = 4  # of every four groups of 16 keys, how many take exp2 by interpolation instead of the special unit
    turns: bool = True  # the warpgroups take turns at the tensor cores
    tail: int = 2  # steps of a turn's last product that still run when it passes
    promote: int = 4  # 8-bit V: blocks of keys after which its sums move to f32 (`totals`), at most MOST_KEYS; 0 never

    @property
    def swizzle_v(self) -> int:
        """The longest line that divides a block of 8-bit V, which lies channels by keys."""
        return next(line for line in (128, 64, 32) if self.block_kv % line == 0)


def choose_config(queries: int, keys: int, heads: int, *, kinds: tuple[str, str], kind: str) -> AttentionConfig:
    """Tuned if this case was measured on this kind of device, else by rule. `kinds` are those of Q·Kᵀ and of P·V."""
    case = case_name(queries, keys, heads, kinds=kinds)
    return lookup(TABLE, kind, case, AttentionConfig) or _by_rule(queries, keys, kinds)


def case_name(queries: int, keys: int, heads: int, *, kinds: tuple[str, str]) -> str:
    """Lengths are told apart by powers of two up to 2^15. So many queries are always many waves, with any heads."""
    q_bits, k_bits = (min((length - 1).bit_length(), MOST_BITS) for length in (queries, keys))
    return f"{kinds[0]} {kinds[1]} q{q_bits} k{k_bits}" + (f" a{heads}" if q_bits < MOST_BITS else "")


def _by_rule(queries: int, keys: int, kinds: tuple[str, str]) -> AttentionConfig:
    # A cluster whose second CTA has nothing to do loses more than sharing wins.
    cluster = 2 if ceil_div(queries, 128) >= 16 else 1
    if keys <= FEW and keys % 128 == 0 and kinds[0] == "s8":
        # No keys that do not exist: a prompt's 512 would be 672 in blocks of 224, and a mask of 192 spills.
        return AttentionConfig(block_kv=128, stages=3, cluster=cluster)
    if kinds == ("s8", "e4m3"):
        return AttentionConfig(cluster=cluster)
    if kinds[0] == "s8":
        return AttentionConfig(block_kv=192, cluster=cluster)
    return AttentionConfig(block_kv=128, cluster=1, tail=1)
