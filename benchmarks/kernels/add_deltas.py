"""A step that skips every block, deltas in INT8, next to XLA's pass; the yardstick is the bandwidth of a copy."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.kernels.measure import BANDWIDTH_COLUMNS, Ceilings, attempt, bandwidth, bandwidth_cells, milliseconds
from pallas_kernels.add_deltas import AddDeltasConfig, add_deltas
from pallas_kernels.add_deltas.config import TABLE, case_name
from pallas_kernels.add_deltas.emulation import emulate

NAME = "add_deltas"
COLUMNS = ("case", *BANDWIDTH_COLUMNS, "error, of its bound")


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    m: int
    k: int
    layers: int


def cases() -> list[Case]:
    shapes = [("1.3B", 1536, 30), ("14B", 5120, 40)]
    return [Case(f"{model} {m}", m, k, layers) for m in (32760, 75600) for model, k, layers in shapes]


def decides(case: Case) -> bool:
    return case.m == 32760


def measure(case: Case, ceilings: Ceilings) -> dict[str, Any]:
    operands = random_operands(case)
    error = error_of_bound(operands, jax.jit(add_deltas)(*operands))
    run, reason = attempt(in_turn(emulate, operands))
    ms = milliseconds({"ours": in_turn(add_deltas, operands), **({} if run is None else {"XLA": run})})
    x, codes, scale, _ = operands
    moved = 2 * x.nbytes + codes.nbytes + scale.nbytes
    return {
        **dataclasses.asdict(case),
        **bandwidth(ms, moved, ceilings),
        "error": error,
        "not run": {"XLA": reason} if reason else {},
    }


def row(result: dict[str, Any]) -> tuple[Any, ...]:
    case = f"{result['name']} x {result['k']}, {result['layers']} layers"
    return case, *bandwidth_cells(result), f"{result['error']:.2f}"


@functools.partial(jax.jit, static_argnums=0)
def random_operands(case: Case) -> tuple[Any, ...]:
    """Of one branch. Codes layer by layer: random bits need several times the memory of what they make."""
    keys = jax.random.split(jax.random.key(0), case.layers + 2)
    shape = (case.m, case.k)
    codes = lax.map(lambda key: lax.bitcast_convert_type(jax.random.bits(key, shape, jnp.uint8), jnp.int8), keys[2:])
    scale = jnp.exp(jax.random.normal(keys[0], (case.layers, case.m)) - 5)
    return jax.random.normal(keys[1], shape, jnp.bfloat16), codes, scale, jnp.arange(case.layers)


same_operands = functools.lru_cache(maxsize=1)(random_operands)  # for all candidates of a case


def in_turn(add: Callable[..., Any], operands: tuple[Any, ...]) -> Callable[[], Any]:
    """Each call's result is the next one's x, whose memory it takes, as in a forward."""
    program, state = jax.jit(add, donate_argnums=0), {"x": operands[0] + 0}

    def run() -> Any:
        state["x"] = program(state["x"], *operands[1:])
        return state["x"]

    return run


def error_of_bound(operands: tuple[Any, ...], result: Any, rows: int = 64) -> float:
    """The largest error in the first and the last rows, over what rounding may come to; above 1 it is wrong.

    That is half a step of bf16, and of every product and every sum after it half a step of f32.
    """
    x, codes, scale, places = operands
    largest = 0.0
    for part in (slice(None, rows), slice(-rows, None)):
        deltas = np.asarray(codes[:, part], np.float64) * np.asarray(scale[:, part], np.float64)[..., None]
        chosen, given = deltas[np.clip(np.asarray(places), 0, len(codes) - 1)], np.asarray(x[part], np.float64)
        expected, magnitude = given + chosen.sum(0), np.abs(given) + np.abs(chosen).sum(0)
        bound = 2**-8 * np.abs(expected) + 2 * len(places) * 2**-24 * magnitude
        # Not `max`, which passes over a NaN.
        largest = float(np.maximum(largest, (np.abs(np.asarray(result[part], np.float64) - expected) / bound).max()))
    if not largest <= 1:
        raise ValueError(f"wrong sums: {largest:.3g} times what rounding explains")
    return largest


# Tuning.


def tuned_cases() -> list[Case]:
    return [case for case in cases() if case.m == 32760]


def table_key(case: Case) -> tuple[Any, str]:
    return TABLE, case_name(case.k, case.layers)


def candidates(case: Case) -> list[AddDeltasConfig]:
    """The likeliest first. None of these spills."""
    return [AddDeltasConfig(*each) for each in ((1, 4), (1, 3), (2, 4), (1, 2), (1, 5), (1, 6), (2, 3), (1, 8))]


def timed(case: Case, config: AddDeltasConfig) -> float:
    operands, add = same_operands(case), functools.partial(add_deltas, config=config)
    error_of_bound(operands, jax.jit(add)(*operands))
    return milliseconds({"ours": in_turn(add, operands)}, rounds=3, target_ms=10)["ours"]
