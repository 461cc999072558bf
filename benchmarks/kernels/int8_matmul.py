"""INT8 matmul at the linears of Wan 1.3B and 14B, next to torch bf16, `_int_mm`, FP8 and XLA."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.kernels.measure import Ceilings, milliseconds, relative_error, with_peers
from pallas_kernels.int8_matmul import Int8MatmulConfig, int8_matmul
from pallas_kernels.int8_matmul.config import TABLE, case_name

NAME = "int8_matmul"
PEERS = ("torch bf16", "torch fp8 row-wise", "torch fp8 tensor-wise", "torch _int_mm", "XLA int8")
TOKENS = {"480p": 32760, "720p": 75600}
LINEARS = {
    "1.3B": {"qkv": (1536, 4608), "o": (1536, 1536), "ffn in": (1536, 8960), "ffn out": (8960, 1536)},
    "14B": {"qkv": (5120, 15360), "o": (5120, 5120), "ffn in": (5120, 13824), "ffn out": (13824, 5120)},
}
COLUMNS = ("case", "variant", "ms", "TFLOP/s", "of ceiling", *(f"vs {peer}" for peer in PEERS), "error")


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    m: int
    k: int
    n: int
    variant: str = "plain"  # plain, gelu, gated or grouped


def cases() -> list[Case]:
    found = []
    for tokens, m in TOKENS.items():
        for model, linears in LINEARS.items():
            for linear, (k, n) in linears.items():
                found.append(Case(f"{model} {linear} {tokens}", m, k, n))
                follows = {"ffn in": "gelu", "o": "gated", "ffn out": "gated"}.get(linear)
                if follows and tokens == "480p":
                    found.append(Case(f"{model} {linear} {tokens}", m, k, n, follows))
    found += [dataclasses.replace(c, variant="grouped") for c in found if c.variant == "plain" and c.m == 32760]
    return found


def decides(case: Case) -> bool:
    """How fast at the six shapes of a block's linears; a fused qkv is a seventh and eighth."""
    return case.m == TOKENS["480p"] and case.variant == "plain" and " qkv " not in case.name


def measure(case: Case, ceilings: Ceilings) -> dict[str, Any]:
    operands = same_operands(case)
    kernel = jax.jit(functools.partial(run_kernel, case))
    runs, reasons = with_peers({"ours": lambda: kernel(*operands)}, lambda: peers(case, operands))
    ms = milliseconds(runs)
    rate = 2 * case.m * case.k * case.n / (ms["ours"] * 1e-3)
    return {
        **dataclasses.asdict(case),
        "ms": {name: round(value, 4) for name, value in ms.items()},
        "tflops": round(rate * 1e-12, 1),
        "of_ceiling": round(rate / (2 * ceilings.bf16), 3),
        "ratio": {name: round(value / ms["ours"], 3) for name, value in ms.items() if name != "ours"},
        "error": spot_error(case, kernel(*operands)),
        "not run": reasons,
    }


def row(result: dict[str, Any]) -> tuple[Any, ...]:
    ratio = lambda name: f"{result['ratio'][name]:.2f}x" if name in result["ratio"] else "-"
    return (
        f"{result['name']} ({result['m']} x {result['k']} x {result['n']})",
        result["variant"],
        f"{result['ms']['ours']:.3f}",
        f"{result['tflops']:.0f}",
        f"{100 * result['of_ceiling']:.0f} %",
        *map(ratio, PEERS),
        f"{result['error']:.1e}",
    )


@functools.partial(jax.jit, static_argnums=0)
def random_operands(case: Case) -> tuple[Any, ...]:
    keys = jax.random.split(jax.random.key(0), 7)
    m, k, n = case.m, case.k, case.n
    x = jax.random.randint(keys[0], (m, k), -127, 128, jnp.int8)
    w = jax.random.randint(keys[1], (n, k), -127, 128, jnp.int8)
    scales = (m, k // 128) if case.variant == "grouped" else (m,)
    x_scale = jax.random.uniform(keys[2], scales, jnp.float32, 0.5, 1.5) / 128
    w_scale = jax.random.uniform(keys[3], (n,), jnp.float32, 0.5, 1.5) / (128 * k**0.5)
    bias = jax.random.normal(keys[4], (n,))
    gate = jax.random.normal(keys[5], (n,)) if case.variant == "gated" else None
    residual = jax.random.normal(keys[6], (m, n), jnp.bfloat16) if case.variant == "gated" else None
    return x, w, x_scale, w_scale, bias, gate, residual


same_operands = functools.lru_cache(maxsize=1)(random_operands)  # for all candidates of a case


def run_kernel(case: Case, x, w, x_scale, w_scale, bias, gate, residual, config=None):
    activation = "gelu_tanh" if case.variant == "gelu" else None
    bias = None if case.variant in ("plain", "grouped") else bias
    return int8_matmul(
        x, w, x_scale, w_scale, bias=bias, activation=activation, gate=gate, residual=residual, config=config
    )


def run_xla(case: Case, x, w, x_scale, w_scale, bias, gate, residual):
    """What XLA makes of the same expression, its own fusions included."""
    y = lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32).astype(jnp.float32)
    y = y * x_scale[:, None] * w_scale[None]
    if case.variant == "gelu":
        y = jax.nn.gelu(y + bias[None], approximate=True)
    if case.variant == "gated":
        y = residual.astype(jnp.float32) + gate[None] * (y + bias[None])
    return y.astype(jnp.bfloat16)


def peers(case: Case, operands) -> dict[str, Any]:
    import torch

    x, w, _, w_scale = (torch.from_dlpack(a) for a in operands[:4])
    x16, w16 = torch.randn_like(x, dtype=torch.bfloat16), torch.randn_like(w, dtype=torch.bfloat16)
    x8, w8 = x16.to(torch.float8_e4m3fn), w16.to(torch.float8_e4m3fn)
    rows, one = torch.rand(case.m, 1, device="cuda"), torch.ones((), device="cuda")
    scaled = functools.partial(torch._scaled_mm, x8, w8.T, out_dtype=torch.bfloat16)
    runs = {
        "torch bf16": lambda: x16 @ w16.T,
        "torch _int_mm": lambda: torch._int_mm(x, w.T),
        "torch fp8 row-wise": lambda: scaled(scale_a=rows, scale_b=w_scale[None]),
        "torch fp8 row-wise, fast sums": lambda: scaled(scale_a=rows, scale_b=w_scale[None], use_fast_accum=True),
        "torch fp8 tensor-wise": lambda: scaled(scale_a=one, scale_b=one, use_fast_accum=True),
    }
    if case.variant != "grouped":
        xla = jax.jit(functools.partial(run_xla, case))
        runs["XLA int8"] = lambda: xla(*operands)
    return runs


def spot_error(case: Case, result) -> float:
    """Relative error of some rows to the same sum in int64 and float64."""
    return relative_error(result[_rows(case.m)].astype(jnp.float32), _expected(case))


@functools.lru_cache(maxsize=1)
def _expected(case: Case) -> np.ndarray:
    operands = same_operands(case)
    x, w, x_scale, w_scale, bias, gate, residual = (None if a is None else np.asarray(a) for a in _on_rows(operands))
    blocks = range(0, case.k, 128)
    if case.variant == "grouped":
        parts = [_exact(x[:, i : i + 128], w[:, i : i + 128]) * x_scale[:, i // 128, None] for i in blocks]
        y = sum(parts) * w_scale[None]
    else:
        y = _exact(x, w) * x_scale[:, None].astype(np.float64) * w_scale[None]
    if case.variant == "gelu":
        y = y + bias
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    if case.variant == "gated":
        y = residual.astype(np.float64) + gate * (y + bias)
    return y


def _exact(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """s8 products summed in float64: every partial sum is an integer below 2^53, so exactly as in int64, and faster."""
    return x.astype(np.float64) @ w.astype(np.float64).T


def _rows(m: int) -> np.ndarray:
    """Some of everywhere, the ragged end included."""
    return np.unique(np.concatenate([np.random.default_rng(0).integers(0, m, 24), np.arange(max(m - 8, 0), m)]))


def _on_rows(operands) -> Iterator[Any]:
    x, w, x_scale, w_scale, bias, gate, residual = operands
    rows = _rows(x.shape[0])
    yield from (x[rows], w, x_scale[rows], w_scale, bias, gate)
    yield None if residual is None else residual[rows].astype(jnp.float32)


# Tuning.


def tuned_cases() -> list[Case]:
    """One of each entry of the table: more tokens and an activation share that of the plain product at 480p."""
    found = [case for case in cases() if case.m == TOKENS["480p"] and case.variant != "gelu"]
    return sorted(found, key=lambda case: not decides(case))


def table_key(case: Case) -> tuple[Any, str]:
    grouped, gated = case.variant == "grouped", case.variant == "gated"
    return TABLE, case_name(case.m, case.k, case.n, grouped=grouped, gated=gated)


def candidates(case: Case) -> list[Int8MatmulConfig]:
    """Those that were measured best first: time may run out.

    Each K step loads a CTA's tile of both sides from the second-level cache, at 1500 TFLOP/s about 8.6 TB/s for 256 x
    128. Larger tiles and multicast to a pair of CTAs lower that: 6.7 for 256 x 192, 4.8 for pairs of those.
    """
    config = Int8MatmulConfig
    if case.variant == "grouped":
        return [config(tile_m=64, stages=5, cluster=c) for c in (None, "m", "n")] + [
            config(tile_m=64, tile_n=192, stages=4, cluster=c) for c in (None, "m")
        ]
    three = functools.partial(config, tile_m=64, tile_n=192, multipliers=3)
    if case.variant == "gated":
        found = [config(), config(band=16), config(cluster="n"), config(cluster="m")]
        found += [config(stages=3, slots=4, cluster=c) for c in (None, "n")]
        return found + [config(tile_m=64, tile_n=256, stages=3, slots=4), three(stages=3, slots=3)]
    # Squares enough that no store is waited for: with a short K the end of a tile weighs more.
    found = [config(), three(stages=3, slots=3), config(band=16), three(stages=3, slots=3, band=16)]
    found += [config(tile_n=192, stages=3), config(cluster="n"), three(stages=3, slots=3, cluster="n")]
    if case.k <= 2048:
        found += [config(band=32), config(stages=3, slots=4)]
    found += [config(tile_n=192, stages=3, cluster=c) for c in ("n", "m")]
    found += [three(stages=4, slots=1), three(stages=4, slots=1, cluster="n")]
    found.append(config(tile_m=64, tile_n=256, slots=1, cluster="m"))
    return list(dict.fromkeys(found))


def timed(case: Case, config: Int8MatmulConfig) -> float:
    operands = same_operands(case)
    kernel = jax.jit(functools.partial(run_kernel, case, config=config))
    error = spot_error(case, kernel(*operands))
    if not error < 1e-2:
        raise ValueError(f"wrong result: relative error {error:.1e}")
    return milliseconds({"ours": lambda: kernel(*operands)}, rounds=3)["ours"]
