"""Quantizing activations, next to what XLA makes of the same expression; the yardstick is the bandwidth of a copy."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernels.measure import (
    BANDWIDTH_COLUMNS,
    NO_GRAPH,
    Ceilings,
    attempt,
    bandwidth,
    bandwidth_cells,
    milliseconds,
)
from pallas_kernels.mosaic import ceil_div
from pallas_kernels.quantize_rows import QuantizeRowsConfig, quantize_rows
from pallas_kernels.quantize_rows.config import GROUP, TABLE, case_name
from pallas_kernels.quantize_rows.emulation import emulate
from pallas_kernels.quantize_rows.spec import E2M1_MAX, E4M3_MAX, INT8_MAX, Spec

NAME = "quantize_rows"
COLUMNS = ("case", "variant", *BANDWIDTH_COLUMNS, "codes that differ")
VARIANTS = {
    "plain": {},
    "rotated": {"rotate": True},
    "grouped": {"rotate": True, "grouped": True},
    "gelu": {"rotate": True, "activation": "gelu_tanh"},
    "modulated": {"norm": "layer", "affine": True},
    "modulated rotated": {"rotate": True, "norm": "layer", "affine": True},
    "nvfp4": {"rotate": True, "form": "nvfp4"},
    "modulated nvfp4": {"norm": "layer", "affine": True, "form": "nvfp4"},
}


# A program moves at least so much, or as much as the most arrays are. The copy it is compared with moves 4 GiB in one
# call: four arrays of 1536 columns are a seventh of that.
MOVED, FEWEST, MOST = 2 << 30, 4, 16


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    m: int
    k: int
    variant: str

    @property
    def spec(self) -> Spec:
        return Spec(**VARIANTS[self.variant])


def cases() -> list[Case]:
    """Norms and modulation happen at a model's width, GELU at its feed-forward width."""
    found = []
    for m in (32760, 75600):
        for k in (1536, 5120, 8960, 13824):
            last = ("modulated", "modulated rotated", "modulated nvfp4") if k in (1536, 5120) else ("gelu",)
            found += [Case(f"{m} x {k}", m, k, variant) for variant in ("plain", "rotated", "grouped", "nvfp4", *last)]
    return found


def decides(case: Case) -> bool:
    """How close to a copy, at the four widths."""
    return case.m == 32760 and case.variant in ("plain", "rotated")


def measure(case: Case, ceilings: Ceilings) -> dict[str, Any]:
    operands = random_operands(case)
    kernel = functools.partial(run_kernel, case)
    run, reason = attempt(several(functools.partial(emulate, spec=case.spec), operands))
    runs = {"ours": several(kernel, operands), **({} if run is None else {"XLA": run})}
    ms = {name: value / arrays(operands[0]) for name, value in milliseconds(runs).items()}
    kernel = jax.jit(kernel)
    results = sum(part.nbytes for part in kernel(*operands) if part is not None)
    return {
        **dataclasses.asdict(case),
        **bandwidth(ms, operands[0].nbytes + results, ceilings),
        "differing_codes": differing_codes(case, operands, kernel(*operands)),
        "not run": {"XLA": reason} if reason else {},
    }


def row(result: dict[str, Any]) -> tuple[Any, ...]:
    return result["name"], result["variant"], *bandwidth_cells(result), f"{result['differing_codes']:.1e}"


@functools.partial(jax.jit, static_argnums=0)
def random_operands(case: Case) -> tuple[Any, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    # Rounded from f32: drawn in bf16 they are 128 values, and whole rows of products lie between two codes.
    x = jax.random.normal(keys[0], (case.m, case.k)).astype(jnp.bfloat16)
    if not case.spec.affine:
        return (x,)
    return x, 1 + 0.3 * jax.random.normal(keys[1], (case.k,)), jax.random.normal(keys[2], (case.k,))


def several(kernel: Callable[..., Any], operands: tuple[Any, ...]) -> Callable[[], Any]:
    """One program that runs it on several arrays: the host takes as long to begin one as the smallest cases take.

    Launched one by one: of graphs more showed the half millisecond that a program takes longer in some processes.
    """
    x, *rest = operands
    rows, one = [jnp.roll(x, i, axis=0) for i in range(arrays(x))], jax.jit(kernel)
    program = jax.jit(lambda rows, rest: [one(x, *rest) for x in rows], compiler_options=NO_GRAPH)
    return lambda: program(rows, rest)


def arrays(x: Any) -> int:
    """So many are quantized by one program."""
    return min(MOST, max(FEWEST, ceil_div(MOVED, x.nbytes + x.size)))


same_operands = functools.lru_cache(maxsize=1)(random_operands)  # for all candidates of a case


def run_kernel(case: Case, x, factor=None, offset=None, config=None):
    spec = case.spec
    return quantize_rows(
        x,
        norm=spec.norm,
        factor=factor,
        offset=offset,
        activation=spec.activation,
        rotate=spec.rotate,
        group=128 if spec.grouped else None,
        form=spec.form,
        config=config,
    )


def differing_codes(case: Case, operands, result, rows: int = 512) -> float:
    """The share of codes off by one in the last rows; more than one is an error, and so are other scales."""
    expected = _expected(case.spec, operands[0][-rows:], *operands[1:])
    last = [np.asarray(part[-rows:]) for part in result if part is not None]
    ours, theirs = _codes(case, last[0]), _codes(case, np.asarray(expected[0]))
    if (difference := np.abs(ours - theirs)).max() > 1:
        raise ValueError(f"wrong codes: {_where_wrong(ours, theirs)}")
    _check_scales(case, last[1], *(np.asarray(part) for part in (expected[1], expected[3])))
    for a, b in zip(last[2:4], expected[2:4], strict=True):
        np.testing.assert_allclose(a, np.asarray(b), rtol=1e-5 if case.spec.activation is None else 4e-5)
    if case.spec.form == "nvfp4":  # a block scale next to the middle between two may fall either way
        a, b = (scale.view(np.uint8).astype(np.int32) for scale in (last[4], np.asarray(expected[4])))
        if np.abs(a - b).max() > 1 or (a != b).mean() > 1e-3:
            raise ValueError("wrong block scales")
    return float((difference > 0).mean())


def most_differing(case: Case) -> float:
    """The share of codes that rounding explains.

    The kernel's tanh is the special unit's, off by up to 2^-11, and what it makes is rounded to bf16 before the
    rotation. The emulation with its tanh moved by as much either way has 1.9 % other codes, scales 1.85 steps off
    (`_check_scales`) and sums 4e-5.
    """
    return 1e-3 if case.spec.activation is None else 0.02


def _expected(spec: Spec, *operands) -> tuple[Any, ...]:
    """On the host, if jax has it: a GPU's products of f32 and its reciprocals are XLA's choice, and not exact."""
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return _emulation(spec)(*operands)
    return _emulation(spec)(*(jax.device_put(x, host) for x in operands))


@functools.cache
def _emulation(spec: Spec) -> Callable[..., Any]:
    return jax.jit(functools.partial(emulate, spec=spec))


def _where_wrong(ours: np.ndarray, theirs: np.ndarray) -> str:
    """What tells rows that never came from a wrong lane or a wrong scale."""
    wrong = np.abs(ours - theirs) > 1
    rows, columns = wrong.any(axis=tuple(range(1, wrong.ndim))), wrong.reshape(len(wrong), -1)
    row = int(np.flatnonzero(rows)[0])
    first = np.flatnonzero(columns[row])[:8]
    values = [part.reshape(len(part), -1)[row, first].tolist() for part in (ours, theirs)]
    return (
        f"off by {np.abs(ours - theirs).max()}, {wrong.sum()} codes in {rows.sum()} of {len(rows)} rows; in row {row} "
        f"columns {first.tolist()} are {values[0]}, expected {values[1]}"
    )


def _check_scales(case: Case, ours: np.ndarray, theirs: np.ndarray, largest: np.ndarray) -> None:
    """Within 1e-5, but for rows where a value that was computed lay next to the middle between two of bf16.

    It may be rounded the other way before the rotation, which moves every sum it is in by a step of bf16, at most 2^-7
    of the row's largest value. Of the 128 values in the sum that decides a scale, each off by three roundings of f32,
    2^-24 of it each, that happens to one in 128 · 2 · 3 · 2^-24 / 2^-8, in 1.2 % of rows. After a GELU it may happen to
    several, in any row (`most_differing`).
    """
    off = np.abs(ours - theirs)
    if not case.spec.changes:
        np.testing.assert_array_less(off, 1e-5 * theirs)
        return
    exact = case.spec.activation is None
    largest_code = E4M3_MAX * E2M1_MAX if case.spec.form == "nvfp4" else INT8_MAX
    step = 2.0**-7 * largest / (largest_code * (GROUP**0.5 if case.spec.rotate else 1.0))
    np.testing.assert_array_less(off, 1e-5 * theirs + (1 if exact else 2) * step)
    if exact and (moved := (off > 1e-5 * theirs).mean()) > 0.012:
        raise ValueError(f"wrong scales: {100 * moved:.1f} % of rows are off")


def _codes(case: Case, codes: np.ndarray) -> np.ndarray:
    """As integers whose neighbours are the neighbouring values."""
    if case.spec.form == "int8":
        return codes.astype(np.int32)
    nibbles = np.stack([codes & 15, codes >> 4], axis=-1).astype(np.int32)
    return np.where(nibbles > 7, 8 - nibbles, nibbles)


# Tuning.


def tuned_cases() -> list[Case]:
    return [case for case in cases() if case.m == 32760]


def table_key(case: Case) -> tuple[Any, str]:
    return TABLE, case_name(case.k, case.spec)


def candidates(case: Case) -> list[QuantizeRowsConfig]:
    """Rows in registers; of what these have not been measured for, also blocks of 24 to 110 KiB in shared memory.

    Of the latter one warpgroup was the fastest in the first sweep. NVFP4 needs more registers: what spills is left out.
    """
    if case.variant in ("plain", "rotated", "gelu"):
        return in_registers(case)
    # (rows, parts of a row, warpgroups)
    shapes = {
        1536: [(16, 1, 1), (16, 1, 3), (8, 1, 2)],
        5120: [(8, 1, 1), (8, 1, 2), (8, 1, 3)],
        8960: [(8, 2, 1), (8, 2, 2), (8, 2, 3)],
        13824: [(8, 4, 1), (8, 4, 2), (8, 2, 2)],
    }[case.k]
    if case.spec.form == "nvfp4":
        shapes = [(rows, split, wgs) for rows, split, wgs in shapes if rows > 8 or wgs == 2]
    return in_registers(case) + [QuantizeRowsConfig(*shape) for shape in shapes]


# (rows, warpgroups, warps that share a row, rounds ahead, kept in registers, lanes crossed or not). The likeliest
# first: rows ahead through as much shared memory as there is; or none of them ahead.
_AS_THEY_COME = {
    1536: [
        (2, 2, 1, 3, True),
        (2, 3, 1, 2, True),
        (1, 2, 1, 7, True),
        (1, 4, 1, 1, True),
        (1, 6, 1, 2, False),
        (2, 4, 1, 1, False),
        (1, 4, 1, 3, True),
        (1, 4, 1, 0, True),
    ],
    5120: [
        (1, 2, 1, 1, False),
        (1, 2, 1, 1, True),
        (1, 4, 4, 3, True),
        (1, 1, 1, 4, True),
        (1, 2, 1, 0, True),
    ],
    8960: [
        (1, 3, 4, 3, True),
        (1, 2, 4, 5, True),
        (1, 4, 4, 2, False),
        (1, 6, 4, 1, False),
        (1, 3, 4, 0, True),
    ],
    13824: [
        (1, 2, 4, 3, True),
        (1, 3, 4, 1, False),
        (1, 4, 4, 1, False),
        (1, 2, 4, 3, False),
        (1, 2, 4, 0, True),
    ],
}
# Bound by shared memory, which factors by channel are read from: four rows of 1536 and two of 5120 read them together.
_CHANGED = {
    1536: [
        (2, 4, 1, 1, True, True),
        (4, 2, 1, 1, True, True),
        (2, 4, 1, 1, False, True),
        (4, 2, 1, 1, False, True),
        (2, 4, 1, 1, False),
        (2, 2, 1, 3, True, True),
    ],
    5120: [
        (1, 2, 1, 1, True, True),
        (1, 2, 1, 1, False, True),
        (2, 1, 1, 1, False, True),
        (1, 2, 1, 1, True),
        (1, 2, 1, 1, False),
    ],
}
# Rotated, what is kept takes twice the registers.
_CHANGED_ROTATED = {
    1536: [(2, 2, 1, 3, True, True), (2, 3, 1, 1, True, True), (2, 4, 1, 1, False, True), (2, 2, 1, 3, True)],
    5120: [(1, 2, 1, 1, True, True), (1, 1, 1, 3, True, True), (1, 2, 1, 1, False, True), (1, 2, 1, 1, True)],
}
_GROUPED = {
    1536: [(1, 4, 1, 1, True), (2, 4, 1, 1, False), (2, 2, 1, 3, True)],
    5120: [(1, 4, 4, 4, True), (1, 2, 1, 1, False), (1, 1, 1, 4, True)],
    8960: [(1, 3, 4, 3, True), (1, 4, 4, 2, False), (1, 3, 4, 3, False)],
    13824: [(1, 3, 4, 1, False), (1, 2, 4, 3, True), (1, 4, 4, 1, False)],
}
_NVFP4 = {
    1536: [(2, 4, 1, 1, False), (2, 3, 1, 2, True)],
    5120: [(1, 2, 1, 1, False), (1, 4, 4, 4, True)],
    8960: [(1, 4, 4, 2, False), (1, 6, 4, 1, False)],
    13824: [(1, 4, 4, 1, False), (1, 3, 4, 1, False)],
}
_GELU = {
    8960: [(1, 3, 4, 3, True), (1, 2, 4, 5, True), (1, 4, 4, 2, False)],
    13824: [(1, 2, 4, 3, True), (1, 4, 4, 1, False), (1, 3, 4, 1, False)],
}
_SHAPES = {
    "plain": _AS_THEY_COME,
    "rotated": _AS_THEY_COME,
    "modulated": _CHANGED,
    "modulated rotated": _CHANGED_ROTATED,
    "modulated nvfp4": _CHANGED,
    "grouped": _GROUPED,
    "gelu": _GELU,
    "nvfp4": _NVFP4,
}


# Of the rounds there are, 15 to 80: left to CTAs that begin late, and how many each of them takes.
_LATE = [(2, 1), (4, 2), (1, 1), (8, 4)]


def in_registers(case: Case) -> list[QuantizeRowsConfig]:
    """None of these spills. The likeliest with some rounds left to late CTAs too."""
    plans = [
        QuantizeRowsConfig(rows, warpgroups=wgs, warps=warps, ahead=ahead, keep=keep, crossed=any(crossed))
        for rows, wgs, warps, ahead, keep, *crossed in _SHAPES[case.variant].get(case.k, [])
    ]
    late = [dataclasses.replace(plan, late=late, stretch=stretch) for plan in plans[:2] for late, stretch in _LATE]
    return plans[:2] + late + plans[2:]


def timed(case: Case, config: QuantizeRowsConfig) -> float:
    operands = same_operands(case)
    kernel = jax.jit(functools.partial(run_kernel, case, config=config))
    differing_codes(case, operands, kernel(*operands))
    run = several(functools.partial(run_kernel, case, config=config), operands)
    return milliseconds({"ours": run}, rounds=3, target_ms=10)["ours"] / arrays(operands[0])
