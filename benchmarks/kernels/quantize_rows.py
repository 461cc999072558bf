"""Quantizing activations, next to what XLA makes of the same expression; the yardstick is the bandwidth of a copy."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernels.measure import attempt, milliseconds
from pallas_kernels.quantize_rows import QuantizeRowsConfig, quantize_rows
from pallas_kernels.quantize_rows.config import TABLE, case_name
from pallas_kernels.quantize_rows.emulation import emulate
from pallas_kernels.quantize_rows.spec import Spec

NAME = "quantize_rows"
COLUMNS = ("case", "variant", "ms", "TB/s", "of copy bandwidth", "vs XLA", "codes that differ")
VARIANTS = {
    "plain": {},
    "rotated": {"rotate": True},
    "grouped": {"rotate": True, "grouped": True},
    "gelu": {"rotate": True, "activation": "gelu_tanh"},
    "modulated": {"rotate": True, "norm": "layer", "affine": True},
}


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
            last = "modulated" if k in (1536, 5120) else "gelu"
            found += [Case(f"{m} x {k}", m, k, variant) for variant in ("plain", "rotated", "grouped", last)]
    return found


def measure(case: Case, bandwidth: float) -> dict[str, Any]:
    operands = random_operands(case)
    kernel = jax.jit(functools.partial(run_kernel, case))
    xla = jax.jit(functools.partial(emulate, spec=case.spec))
    run, reason = attempt(lambda: xla(*operands))
    runs = {"ours": lambda: kernel(*operands), **({} if run is None else {"XLA": run})}
    ms = milliseconds(runs)
    moved = case.m * (3 * case.k + 12) + (4 * case.m * (case.k // 128) if case.spec.grouped else 0)
    rate = moved / (ms["ours"] * 1e-3)
    return {
        **dataclasses.asdict(case),
        "ms": {name: round(value, 4) for name, value in ms.items()},
        "tb_per_s": round(rate * 1e-12, 3),
        "of_copy": round(rate / bandwidth, 3),
        "ratio": {name: round(value / ms["ours"], 3) for name, value in ms.items() if name != "ours"},
        "differing_codes": differing_codes(case, operands, kernel(*operands)),
        "not run": {"XLA": reason} if reason else {},
    }


def row(result: dict[str, Any]) -> tuple[Any, ...]:
    ratio = result["ratio"].get("XLA")
    return (
        result["name"],
        result["variant"],
        f"{result['ms']['ours']:.3f}",
        f"{result['tb_per_s']:.2f}",
        f"{100 * result['of_copy']:.0f} %",
        f"{ratio:.2f}x" if ratio else "-",
        f"{result['differing_codes']:.1e}",
    )


def random_operands(case: Case) -> tuple[Any, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (case.m, case.k), jnp.bfloat16)
    if not case.spec.affine:
        return (x,)
    return x, 1 + 0.3 * jax.random.normal(keys[1], (case.k,)), jax.random.normal(keys[2], (case.k,))


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
        config=config,
    )


def differing_codes(case: Case, operands, result, rows: int = 512) -> float:
    """The share of codes off by one in the last rows; more than one, or a scale off by 1e-5, is an error."""
    expected = jax.jit(functools.partial(emulate, spec=case.spec))(operands[0][-rows:], *operands[1:])
    difference = np.abs(np.asarray(result[0][-rows:], np.int32) - np.asarray(expected[0], np.int32))
    if difference.max() > 1:
        raise ValueError(f"wrong codes: off by {difference.max()}")
    for ours, theirs in zip(result[1:], expected[1:], strict=True):
        np.testing.assert_allclose(np.asarray(ours)[-rows:], np.asarray(theirs), rtol=1e-5)
    return float((difference > 0).mean())


# Tuning.


def tuned_cases() -> list[Case]:
    return [case for case in cases() if case.m == 32760 and case.variant in ("rotated", "grouped", "gelu")]


def table_key(case: Case) -> tuple[Any, str]:
    return TABLE, case_name(case.k, case.spec)


def candidates(case: Case) -> list[QuantizeRowsConfig]:
    config = QuantizeRowsConfig
    shapes = {
        1536: [(16, 1), (64, 4), (32, 2)],
        5120: [(8, 1), (64, 8), (8, 2)],
        8960: [(8, 2), (16, 2)],
        13824: [(8, 4), (8, 2), (16, 4)],
    }[case.k]
    return [config(rows, split, wgs) for rows, split in shapes for wgs in (1, 2, 3, 4)]


def timed(case: Case, config: QuantizeRowsConfig) -> float:
    operands = random_operands(case)
    kernel = jax.jit(functools.partial(run_kernel, case, config=config))
    differing_codes(case, operands, kernel(*operands))
    return milliseconds({"ours": lambda: kernel(*operands)}, rounds=3, target_ms=10)["ours"]
