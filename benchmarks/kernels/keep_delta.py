"""What a block added to its input, measured and kept, next to XLA's passes; the yardstick is a copy's bandwidth."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.kernels.measure import BANDWIDTH_COLUMNS, Ceilings, attempt, bandwidth, bandwidth_cells, milliseconds
from pallas_kernels.keep_delta import KeepDeltaConfig, Kept, keep_delta
from pallas_kernels.keep_delta.config import LANE, TABLE, case_name, choose_config
from pallas_kernels.keep_delta.emulation import emulate
from pallas_kernels.keep_delta.warp import Division
from pallas_kernels.mosaic import ceil_div, device_facts

NAME = "keep_delta"
COLUMNS = ("case", *BANDWIDTH_COLUMNS, "error, of its bound")
PASSES = 5  # x, y and the old delta are read, y and the new one written
ROWS = 4096  # that the host takes at a time


@dataclasses.dataclass(frozen=True)
class Case:
    """How many slots there are costs memory, not time."""

    name: str
    m: int
    k: int
    slots: int = 2


def cases() -> list[Case]:
    return [Case(f"{model} {m}", m, k) for m in (32760, 75600) for model, k in (("1.3B", 1536), ("14B", 5120))]


def decides(case: Case) -> bool:
    return case.m == 32760


def measure(case: Case, ceilings: Ceilings) -> dict[str, Any]:
    operands, expected = same_operands(case)
    error = error_of_bound(operands, expected, jax.jit(keep_delta)(*operands))
    run, reason = attempt(in_turn(by_xla, operands))
    ms = milliseconds({"ours": in_turn(keep_delta, operands), **({} if run is None else {"XLA": run})})
    return {
        **dataclasses.asdict(case),
        **bandwidth(ms, PASSES * operands[0].nbytes, ceilings),
        "error": error,
        "not run": {"XLA": reason} if reason else {},
    }


def row(result: dict[str, Any]) -> tuple[Any, ...]:
    return f"{result['name']} x {result['k']}", *bandwidth_cells(result), f"{result['error']:.2f}"


@functools.partial(jax.jit, static_argnums=0)
def random_operands(case: Case) -> tuple[Any, ...]:
    """The store slot by slot: random bits need several times the memory of what they make."""
    keys = jax.random.split(jax.random.key(0), case.slots + 2)
    normal = lambda key: jax.random.normal(key, (case.m, case.k), jnp.bfloat16)
    return normal(keys[0]), normal(keys[1]), lax.map(normal, keys[2:]), jnp.int32(case.slots - 1)


@functools.lru_cache(maxsize=1)
def same_operands(case: Case) -> tuple[tuple[Any, ...], "Expected"]:
    """For all candidates of a case, with what comes of them."""
    operands = random_operands(case)
    return operands, expected_of(operands)


def by_xla(x: Any, y: Any, deltas: Any, place: Any) -> Any:
    """As in the loop over layers, where y goes to where x lies. Without the barrier a program hands on what it got."""
    return emulate(x, lax.optimization_barrier(y), deltas, place)


def in_turn(keep: Callable[..., Any], operands: tuple[Any, ...]) -> Callable[[], Any]:
    """Each call's results are the next one's x and store, whose memory they take, as in a forward.

    What a block would make of such an x is y and its negative by turns, so that there are deltas to keep.
    """
    x, y, deltas, place = operands
    program, blocks = jax.jit(keep, donate_argnums=(0, 2)), itertools.cycle((y, -y))
    state = {"x": x + 0, "deltas": deltas + 0}

    def run() -> Any:
        state["x"], state["deltas"], *_ = program(state["x"], next(blocks), state["deltas"], place)
        return state["x"]

    return run


# What is right.


class Expected(NamedTuple):
    """As the host has it: a store is compared bit by bit, sums by what rounding may come to."""

    deltas: Any  # bf16 (slots, m, k)
    sums: Any  # f64 (4,): of what is added up in f32


def expected_of(operands: tuple[Any, ...]) -> Expected:
    """Differences are rounded to f32 as on the device. The place is one that the store has."""
    x, y, deltas, place = operands
    kept, sums = np.empty(x.shape, jnp.bfloat16), np.zeros(4)
    for first in range(0, len(x), ROWS):
        part = slice(first, first + ROWS)
        before, after, old = (np.asarray(each).astype(np.float32) for each in (x[part], y[part], deltas[place, part]))
        delta = after - before
        kept[part] = delta.astype(jnp.bfloat16)
        sums += [np.abs(each).sum(dtype=np.float64) for each in (delta, before, delta - old, old)]
    return Expected(deltas.at[place].set(kept), sums)


def additions(m: int, k: int, config: KeepDeltaConfig) -> int:
    """In the longest chain of a sum: in a lane, over a warp's, and XLA's over warps, by no fewer than 32 threads."""
    warps = Division(1, m, k, config).warps
    return LANE * config.tiles + 5 + ceil_div(warps, 32) + 5


def error_of_bound(
    operands: tuple[Any, ...], expected: Expected, result: Kept, config: KeepDeltaConfig | None = None
) -> float:
    """The largest error of a sum over what rounding may come to; above 1, or a bit that differs, is wrong.

    An addition rounds by half a step of f32 of what it comes to, and all of these are positive: so a chain's error is
    at most that of so many additions of the whole sum.
    """
    if not same_bits(result.y, operands[1]):
        raise ValueError("y is not what was given")
    if not same_bits(result.deltas, expected.deltas):
        raise ValueError("the store is not the one with y - x in its place")
    m, k = operands[0].shape
    bound = 2**-24 * additions(m, k, config or choose_config(m, k, device_facts()[0])) * expected.sums
    largest = float((np.abs(np.asarray(result[2:], np.float64) - expected.sums) / bound).max())
    if not largest <= 1:
        raise ValueError(f"wrong sums: {largest:.3g} times what rounding explains")
    return largest


@jax.jit
def same_bits(a: Any, b: Any) -> Any:
    return (lax.bitcast_convert_type(a, jnp.uint16) == lax.bitcast_convert_type(b, jnp.uint16)).all()


# Tuning.


def tuned_cases() -> list[Case]:
    return [case for case in cases() if case.m == 32760]


def table_key(case: Case) -> tuple[Any, str]:
    return TABLE, case_name(case.m, case.k)


def candidates(case: Case) -> list[KeepDeltaConfig]:
    """The likeliest first."""
    likely = [(2, 1, 1), (4, 2, 1), (1, 1, 2), (2, 1, 2), (4, 1, 1)]
    others = [(8, 2, 2), (8, 2, 1), (4, 1, 2), (8, 1, 1), (16, 2, 1)]
    return [KeepDeltaConfig(*each) for each in likely + others]


def timed(case: Case, config: KeepDeltaConfig) -> float:
    operands, expected = same_operands(case)
    keep = functools.partial(keep_delta, config=config)
    error_of_bound(operands, expected, jax.jit(keep)(*operands), config)
    return milliseconds({"ours": in_turn(keep, operands)}, rounds=3, target_ms=10)["ours"]
