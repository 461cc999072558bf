"""What can be tuned in the quantizer, and a choice for every width."""

import dataclasses
from pathlib import Path
from typing import Any

from pallas_kernels.tables import lookup

TABLE = Path(__file__).with_name("tuned.json")

GROUP = 128
TILE = 64  # groups a warpgroup works on at a time: the rows of one wgmma


@dataclasses.dataclass(frozen=True)
class QuantizeRowsConfig:
    rows: int = 8  # rows (or parts of rows) a block; a multiple of 8, the rows of a swizzle atom
    split: int = 1  # parts a row is cut into
    warpgroups: int = 2
    slots: int = 1  # tiles of codes on their way out, per warpgroup
    # 1 or 4: `warps_sm90`, so many warps take `rows` rows, one if four; of what is above only warpgroups.
    warps: int = 0
    # With ahead: a row in registers until its codes are made, rotated if it is to be, in f32; else read from shared
    # memory and rotated again.
    keep: bool = True
    ahead: int = 0  # with warps: rounds whose rows are on their way through shared memory; 0 is straight to registers
    # With warps: the last so many rounds are left to CTAs that begin where an SM is done, `stretch` of them each.
    late: int = 0
    stretch: int = 1
    # With ahead: lanes of odd groups take their sixteen bytes in another order than the others. In the same order two
    # lanes each meet in a bank of shared memory; so they select what is whose, in an instruction a word.
    crossed: bool = False


def choose_config(k: int, spec: Any, kind: str) -> QuantizeRowsConfig:
    """Tuned if this width was measured on this kind of device, else by rule."""
    return lookup(TABLE, kind, case_name(k, spec), QuantizeRowsConfig) or _by_rule(k, spec)


def case_name(k: int, spec: Any) -> str:
    """Of what needs registers and instructions of its own. What leaves x as it is has names of its own."""
    if not (spec.changes or spec.grouped) and spec.form == "int8":
        return f"k{k} {'rotated' if spec.rotate else 'plain'}"
    kinds = ["grouped" if spec.grouped else "", spec.activation or "", spec.form if spec.form != "int8" else ""]
    if _by_channel(spec):
        # A rotation needs registers beside a row; the others have none to spare without one.
        kinds += ["modulated", "rotated" if spec.rotate and not any(kinds) else ""]
    return " ".join([f"k{k}", *filter(None, kinds)])


def _by_channel(spec: Any) -> bool:
    return spec.norm is not None or spec.affine


# Up to so wide rows, in registers.
_WIDE = {k: QuantizeRowsConfig(rows=1, warpgroups=w, warps=4, ahead=1, keep=False) for k, w in ((18816, 3), (28416, 2))}
_AS_THEY_COME = {
    1536: QuantizeRowsConfig(rows=1, warpgroups=4, warps=1, ahead=1),
    5120: QuantizeRowsConfig(rows=1, warpgroups=2, warps=1, ahead=1, keep=False),
    8960: QuantizeRowsConfig(rows=1, warpgroups=3, warps=4, ahead=3),
    13824: QuantizeRowsConfig(rows=1, warpgroups=2, warps=4, ahead=3),
    **_WIDE,
}
# Four warpgroups leave 128 registers a thread, too few for a GELU beside a row.
_ACTIVATED = {**_AS_THEY_COME, 1536: QuantizeRowsConfig(rows=1, warpgroups=3, warps=1, ahead=1)}
# Blocks of NVFP4 take registers that a rotated row needs.
_IN_FOUR_BITS = {
    1536: QuantizeRowsConfig(rows=2, warpgroups=4, warps=1, ahead=1, keep=False),
    5120: QuantizeRowsConfig(rows=1, warpgroups=2, warps=1, ahead=1, keep=False),
    8960: QuantizeRowsConfig(rows=1, warpgroups=4, warps=4, ahead=2, keep=False),
    13824: QuantizeRowsConfig(rows=1, warpgroups=4, warps=4, ahead=1, keep=False),
    **_WIDE,
}
# The factors of a wider row's channels would leave room for no row ahead: up to here there is a kernel for any spec.
WIDEST = 18432
_BY_CHANNEL = {
    1536: QuantizeRowsConfig(rows=2, warpgroups=4, warps=1, ahead=1, keep=False, crossed=True),
    5120: QuantizeRowsConfig(rows=1, warpgroups=2, warps=1, ahead=1, keep=False, crossed=True),
    8960: QuantizeRowsConfig(rows=1, warpgroups=3, warps=4, ahead=1, keep=False, crossed=True),
    13824: QuantizeRowsConfig(rows=1, warpgroups=2, warps=4, ahead=1, keep=False, crossed=True),
    WIDEST: QuantizeRowsConfig(rows=1, warpgroups=1, warps=4, ahead=1, keep=False, crossed=True),
}


def _by_rule(k: int, spec: Any) -> QuantizeRowsConfig:
    """Rows in registers; else blocks of at most 80 KiB, so that two CTAs share an SM, if rows can be cut that short."""
    if _by_channel(spec):
        choices = _BY_CHANNEL
    elif spec.form == "nvfp4":
        choices = _IN_FOUR_BITS
    else:
        choices = _ACTIVATED if spec.activation else _AS_THEY_COME
    for width, config in choices.items():
        if k <= width:
            return config
    split = 1
    while k // split > 5120 and (k // split) % (2 * GROUP) == 0 and split < 4:
        split *= 2
    return QuantizeRowsConfig(split=split)
