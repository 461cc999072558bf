"""What comes before INT8 attention (RMS norm, rotation, smoothing, rounding, transposing V), next to XLA's version.

The yardstick is the bandwidth of a copy, for bytes that any version moves: q, k and v read once, their codes written.
"In place" reads them from the columns of one array, as a model has them; "cut out" makes three arrays of it first.

Times are of the kernels alone: there are some 25, which take a host as long to send off as they run at 1.3B and 480p.
By the clock that took 0.44 ms in one process and 0.83, 0.95 or 1.14 in others.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernels.attention_int8 import HEADS, TOKENS
from benchmarks.kernels.measure import Ceilings, Run, attempt, bandwidth, busy_milliseconds
from pallas_kernels.attention_int8 import AttentionConfig, Before, operands, prologue
from pallas_kernels.attention_int8.numbers import HEAD
from pallas_kernels.columns import side_by_side

NAME = "attention_prologue"
COLUMNS = ("case", "ms", "TB/s", "of copy bandwidth", "in place, ms", "cut out, ms", "vs XLA", "codes that differ")


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    heads: int
    tokens: int


def cases() -> list[Case]:
    return [Case(f"{model} {tokens}", heads, s) for tokens, s in TOKENS.items() for model, heads in HEADS.items()]


def decides(case: Case) -> bool:
    return False


def measure(case: Case, ceilings: Ceilings) -> dict[str, Any]:
    values = random_operands(case)
    ours, xla = (jax.jit(program(case, quantize)) for quantize in (prologue.quantize, operands.quantize))
    run, reason = attempt(lambda: xla(*values))
    runs = {"ours": lambda: ours(*values)} | of_merged(case, *values) | ({} if run is None else {"XLA": run})
    ms = busy_milliseconds(runs)
    moved = case.tokens * case.heads * HEAD * 9
    return {
        **dataclasses.asdict(case),
        **bandwidth(ms, moved, ceilings),
        "differing_codes": None if run is None else differing_codes(ours(*values), run()),
        "not run": {"XLA": reason} if reason else {},
    }


def row(result: dict[str, Any]) -> tuple[Any, ...]:
    ratio, differing = result["ratio"].get("XLA"), result["differing_codes"]
    return (
        f"{result['name']} ({result['heads']} x {result['tokens']})",
        f"{result['ms']['ours']:.3f}",
        f"{result['tb_per_s']:.2f}",
        f"{100 * result['of_copy']:.0f} %",
        *(f"{result['ms'].get(name, float('nan')):.3f}" for name in ("in place", "cut out")),
        f"{ratio:.2f}x" if ratio else "-",
        "-" if differing is None else f"{differing:.1e}",
    )


def of_merged(case: Case, q: Any, k: Any, v: Any, before: Before) -> dict[str, Run]:
    merged = jnp.concatenate([x.reshape(1, case.tokens, -1) for x in (q, k, v)], axis=-1)
    quantize = program(case, prologue.quantize)
    parts = lambda merged: side_by_side(merged, 3, case.heads)
    in_place = jax.jit(lambda merged, before: quantize(*parts(merged), before))
    cut_out = jax.jit(lambda merged, before: quantize(*(x.cut_out() for x in parts(merged)), before))
    return {"in place": lambda: in_place(merged, before), "cut out": lambda: cut_out(merged, before)}


def random_operands(case: Case) -> tuple[Any, ...]:
    keys = jax.random.split(jax.random.key(0), 6)
    x = [jax.random.normal(key, (1, case.tokens, case.heads, HEAD), jnp.bfloat16) for key in keys[:3]]
    norms = [jax.random.uniform(key, (case.heads * HEAD,), jnp.float32, 0.5, 2.0) for key in keys[3:5]]
    angles = jnp.repeat(jax.random.uniform(keys[5], (case.tokens, HEAD // 2), jnp.float32, 0.0, 6.3), 2, axis=1)
    signs = jnp.tile(jnp.array([-1.0, 1.0]), HEAD // 2)
    return *x, Before(*norms, (jnp.cos(angles), jnp.sin(angles) * signs[None]))


def program(case: Case, quantize):
    return functools.partial(quantize, valid_keys=case.tokens, pv="e4m3", config=AttentionConfig())


def differing_codes(ours, theirs) -> float:
    """The share of codes off by one, of Q and K; more than one is an error, and so is a value of V off by a step."""
    shares = []
    for name in ("q", "k"):
        a, b = (np.asarray(getattr(x, name)[:, -512:], np.int32) for x in (ours, theirs))
        if np.abs(a - b).max() > 1:
            raise ValueError(f"wrong codes of {name}: off by {np.abs(a - b).max()}")
        shares.append((a != b).mean())
    a, b = (np.asarray(x.v[..., -512:].astype(jnp.float32)) for x in (ours, theirs))
    if (np.abs(a - b) > np.abs(b) / 8 + 2**-9).any():
        raise ValueError("wrong values of V")
    return float(max(shares))
