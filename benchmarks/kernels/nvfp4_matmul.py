"""NVFP4 weights: expanding them next to the product they feed, and decoding them in registers next to torch bf16."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernels.measure import NO_GRAPH, Ceilings, Run, milliseconds, relative_error, with_peers
from pallas_kernels.int8_matmul import int8_matmul
from pallas_kernels.nvfp4_matmul import FusedConfig, expand_to_bf16, expand_to_int8, nvfp4_matmul
from pallas_kernels.nvfp4_matmul.codes import scaled_values
from pallas_kernels.nvfp4_matmul.config import (
    SHARED_MEMORY,
    SPAN,
    TABLE,
    WARP_TOKENS,
    case_name,
    choose_config,
    eights,
    warp_bytes,
)

NAME = "nvfp4_matmul"
COLUMNS = (
    "case",
    "µs",
    "launched one by one",
    "of copy bandwidth",
    "vs torch bf16",
    "vs XLA",
    "of the product it feeds",
    "error",
)
ALONE = "ours, launched one by one"
# Taken in turn: one would stay in the second-level cache. And so many that the time is the GPU's: sending off a program
# costs a host 50 to 100 µs, which four products of 14 µs do not hide.
WEIGHTS = 8
LAYERS = ((1536, 8960), (8960, 1536), (5120, 5120), (5120, 13824), (13824, 5120), (4096, 10240))
TOKENS = 32760  # of the product an expanded weight feeds


@dataclasses.dataclass(frozen=True)
class Case:
    what: str  # expand to int8, expand to bf16, fused
    m: int
    k: int
    n: int


def cases() -> list[Case]:
    expanded = [Case(what, TOKENS, k, n) for what in ("expand to int8", "expand to bf16") for k, n in LAYERS[:5]]
    few = [Case("fused", m, 5120, 13824) for m in (1, 8, 16, 32, 64)]
    return expanded + few + [Case("fused", 64, k, n) for k, n in LAYERS if (k, n) != (5120, 13824)]


def decides(case: Case) -> bool:
    """What expanding costs, and how fast few tokens are, at the largest layer."""
    return (case.k, case.n) == (5120, 13824) and case.what != "expand to bf16"


def measure(case: Case, ceilings: Ceilings) -> dict[str, Any]:
    result = (_measure_fused if case.what == "fused" else _measure_expand)(case)
    # Four and a half bits a value in; eight or sixteen out, when expanded.
    out = {"fused": 0.0, "expand to int8": 1.0, "expand to bf16": 2.0}[case.what]
    rate = case.n * case.k * (9 / 16 + out) / (result["ms"]["ours"] * 1e-3)
    return {**dataclasses.asdict(case), **result, "of_copy": round(rate / ceilings.copy, 3)}


def row(result: dict[str, Any]) -> tuple[Any, ...]:
    ratio = lambda name: f"{result['ratio'][name]:.2f}x" if name in result["ratio"] else "-"
    share = result.get("of_product")
    return (
        f"{result['what']}, {result['m']} x {result['k']} x {result['n']}",
        f"{1e3 * result['ms']['ours']:.1f}",
        f"{1e3 * result['ms'][ALONE]:.1f}" if ALONE in result["ms"] else "-",
        f"{100 * result['of_copy']:.0f} %",
        ratio("torch bf16"),
        ratio("XLA"),
        "-" if share is None else f"{100 * share:.1f} %",
        f"{result['error']:.1e}",
    )


def random_weights(case: Case) -> list[tuple[jax.Array, jax.Array]]:
    keys = jax.random.split(jax.random.key(0), 2 * WEIGHTS)
    made = []
    for i in range(WEIGHTS):
        packed = jax.random.randint(keys[2 * i], (case.n, case.k // 2), 0, 256, jnp.int32).astype(jnp.uint8)
        scale = jax.random.uniform(keys[2 * i + 1], (case.n, case.k // 16), jnp.float32, 0.05, 4.0)
        made.append((packed, scale.astype(jnp.float8_e4m3fn)))
    return made


same_weights = functools.lru_cache(maxsize=1)(random_weights)  # for all candidates of a case


def _measure_fused(case: Case) -> dict[str, Any]:
    weights, one = same_weights(case), jnp.float32(1e-3)
    x = jax.random.normal(jax.random.key(1), (case.m, case.k), jnp.bfloat16)
    all_weights = functools.partial(_all_weights, x=x, weights=weights, tensor_scale=one)
    peers = lambda: {
        ALONE: all_weights(nvfp4_matmul, options=NO_GRAPH),
        "XLA": all_weights(_scaled_dot),
        "torch bf16": _torch_graph(case),
    }
    runs, reasons = with_peers({"ours": all_weights(nvfp4_matmul)}, peers)
    ms = milliseconds(runs)
    actual = nvfp4_matmul(x, *weights[0], one)[:, :512].astype(jnp.float32)
    return _summary(ms, WEIGHTS, relative_error(actual, _expected(case)), reasons)


@functools.lru_cache(maxsize=1)
def _expected(case: Case) -> np.ndarray:
    """The first 512 columns of the product with the first weight."""
    packed, scale = (part[:512] for part in same_weights(case)[0])
    x = jax.random.normal(jax.random.key(1), (case.m, case.k), jnp.bfloat16)
    return np.asarray(x, np.float64) @ np.asarray(scaled_values(packed, scale), np.float64).T * 1e-3


def _measure_expand(case: Case) -> dict[str, Any]:
    weights = same_weights(case)
    to_int8 = case.what == "expand to int8"
    expand = jax.jit(
        lambda weights: [
            expand_to_int8(*weight, jnp.float32(1e-3)) if to_int8 else expand_to_bf16(*weight) for weight in weights
        ]
    )
    x = jax.random.randint(jax.random.key(1), (case.m, case.k), -127, 128, jnp.int8)
    codes, scale = expand_to_int8(*weights[0], jnp.float32(1e-3))
    product = jax.jit(int8_matmul)
    rows = jnp.ones(case.m)
    ms = milliseconds({"ours": lambda: expand(weights), "product": lambda: product(x, codes, rows, scale)})
    summary = _summary({"ours": ms["ours"]}, WEIGHTS, _expand_error(weights[0], to_int8), {})
    return {**summary, "of_product": round(ms["ours"] / WEIGHTS / ms["product"], 4)}


def _summary(ms: dict[str, float], calls: int, error: float, reasons: dict[str, str]) -> dict[str, Any]:
    return {
        "ms": {name: round(value / calls, 5) for name, value in ms.items()},
        "ratio": {name: round(value / ms["ours"], 3) for name, value in ms.items() if name != "ours"},
        "error": error,
        "not run": reasons,
    }


def _all_weights(multiply, x, weights, tensor_scale, options=None) -> Run:
    """One program for all weights: a single product ends before the next one could be sent off.

    Each product is written where its last one was, and tokens are a constant, so that nothing moves: XLA changes a CUDA
    graph whose arrays did, which takes time. With results that move 17.3 µs were measured for one token, where 14.5 are
    true. In some processes 57 µs for 32, where 20 are, whatever moves: docs/kernels.md.
    """
    multiply = jax.jit(multiply)  # lowered once
    program = jax.jit(
        lambda _, weights: [multiply(x, *weight, tensor_scale) for weight in weights],
        donate_argnums=0,
        keep_unused=True,
        compiler_options=options,
    )
    first = jax.eval_shape(multiply, x, *weights[0], tensor_scale)
    results = [jnp.zeros(first.shape, first.dtype) for _ in weights]

    def run():
        nonlocal results
        results = program(results, weights)
        return results

    return run


def _scaled_dot(x, packed, block_scale, tensor_scale):
    """XLA's own product with a block-scaled weight, one Triton fusion."""
    n, k = packed.shape[0], 2 * packed.shape[1]
    codes = jax.lax.bitcast_convert_type(packed, jnp.float4_e2m1fn).reshape(n, k)
    dimensions = (((1,), (1,)), ((), ()))
    y = jax.lax.scaled_dot(
        x, codes, rhs_scale=block_scale, dimension_numbers=dimensions, preferred_element_type=jnp.float32
    )
    return (y * tensor_scale).astype(jnp.bfloat16)


def _torch_graph(case: Case):
    """torch's bf16 products with all weights, replayed as one graph so that launches do not count."""
    import torch

    x = torch.randn(case.m, case.k, device="cuda", dtype=torch.bfloat16)
    weights = [torch.randn(case.n, case.k, device="cuda", dtype=torch.bfloat16) for _ in range(WEIGHTS)]
    multiply = lambda: [x @ weight.T for weight in weights]
    multiply()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = multiply()

    def run():
        graph.replay()
        return results[0]

    return run


def _expand_error(weight, to_int8: bool) -> float:
    """To the exact values. INT8 rounds to 1/127 of a row's largest value; bf16 has to be exact."""
    expected = np.asarray(scaled_values(*weight), np.float64)[:256]
    if not to_int8:
        return relative_error(expand_to_bf16(*weight)[:256].astype(jnp.float32), expected)
    codes, scale = expand_to_int8(*weight, jnp.float32(1.0))
    return relative_error(codes[:256].astype(jnp.float32) * scale[:256, None], expected)


# Tuning: only the fused product has something to tune.


def tuned_cases() -> list[Case]:
    return [case for case in cases() if case.what == "fused"]


def table_key(case: Case) -> tuple[Any, str]:
    return TABLE, case_name(case.m, case.k, case.n)


def candidates(case: Case) -> list[FusedConfig]:
    """Products of single warps where there are few tokens, likeliest first; then those of warpgroups."""
    return (_staged(case) + _of_warps(case) if case.m <= WARP_TOKENS else []) + _of_warpgroups(case)


def _staged(case: Case) -> list[FusedConfig]:
    """Tokens by the stages, shared by more CTAs or fewer, as many stages as fit or fewer, all under way or two."""
    rule = choose_config(case.m, case.k, case.n, "any other")
    # The sums of more than sixteen tokens are too many registers for two groups.
    groups = (2, 1) if case.m <= 16 else (1,)
    clusters = [c for c in (2, 1, 4) if eights(case.m) % c == 0]
    fits = lambda config: warp_bytes(case.m, config) <= SHARED_MEMORY
    found = []
    for group in groups:
        plans = [dataclasses.replace(rule, groups=group, stages=s, staged=True) for s in range(group, 11, group)]
        most = [plan for plan in plans if fits(plan)][-1]
        for cluster in clusters:
            plan = dataclasses.replace(most, cluster=cluster)
            changes = (
                dict(),
                dict(ahead=2),
                dict(early=True),
                dict(early=True, ahead=2),
                dict(stages=max(plan.stages - group, group)),
            )
            found += [dataclasses.replace(plan, **change) for change in changes]
    return list(dict.fromkeys(found))


def _of_warps(case: Case) -> list[FusedConfig]:
    """Rows for one wave, one or two groups, begun early or not, more bytes under way or fewer."""
    rule = choose_config(case.m, case.k, case.n, "any other")
    change = functools.partial(dataclasses.replace, rule)
    stages = range(2, -(-case.k // SPAN) + 1, 2)
    found = [rule, change(early=True), change(ahead=2)]
    for groups in (2, 1):
        fitting = [c for s in stages if warp_bytes(case.m, c := change(groups=groups, stages=s)) <= SHARED_MEMORY]
        for config in fitting[:-3:-1]:
            found += [config, dataclasses.replace(config, early=True)]
    if warp_bytes(case.m, larger := change(tiles=rule.tiles + 1)) <= SHARED_MEMORY:
        found.append(larger)
    return list(dict.fromkeys(found))


def _of_warpgroups(case: Case) -> list[FusedConfig]:
    """Four decoding warpgroups; finished inside, with and without sharing the tokens; then parts."""
    chunks, tiles, tokens = case.k // 256, case.n // 128, -(-case.m // 8) * 8
    clusters = [c for c in (1, 2, 4) if tiles % c == 0 and tokens % (8 * c) == 0]
    halves = [part for part in (1, 2, 3) if chunks % part == 0 and (part == 1 or part * tiles <= 132)]
    changes = dict(), dict(early=True), dict(ahead=2), dict(stages=6), dict(stages=2)
    paired = [FusedConfig(1, 4, cluster, True, 2) for cluster in clusters if tokens > 16]
    found = [dataclasses.replace(plan, **change) for change in changes for plan in paired]
    found += [FusedConfig(part, stages, 1, part == 1, 2) for part in halves for stages in (6, 8, 4) if tokens <= 16]
    found = [c for c in found if min(c.stages, chunks // c.parts) % 2 == 0]
    found += [FusedConfig(1, stages, cluster, True) for cluster in clusters for stages in (3, 4, 6)]
    parts = [parts for parts in (1, 2, 3, 4, 5, 6, 8, 10) if chunks % parts == 0 and parts * tiles <= 264]
    found += [FusedConfig(part, stages) for part in parts for stages in (3, 4)]
    slot = 128 * 128 + 128 * 16 + tokens * 512
    return [config for config in found if config.stages * slot <= SHARED_MEMORY - 4096]


def timed(case: Case, config: FusedConfig) -> float:
    weights, one = same_weights(case), jnp.float32(1e-3)
    x = jax.random.normal(jax.random.key(1), (case.m, case.k), jnp.bfloat16)
    actual = nvfp4_matmul(x, *weights[0], one, config=config)
    if not (error := relative_error(actual[:, :512].astype(jnp.float32), _expected(case))) < 1e-2:
        raise ValueError(f"wrong result: relative error {error:.1e}")
    run = _all_weights(functools.partial(nvfp4_matmul, config=config), x, weights, one)
    return milliseconds({"ours": run}, rounds=3, target_ms=10)["ours"] / WEIGHTS
