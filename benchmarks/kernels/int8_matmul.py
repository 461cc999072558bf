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
from pallas_kernels.int8_matmul.config import TABLE, case_name, even_band
from sixbit_jax.formats.int8 import quantize_int8

NAME = "int8_matmul"
PEERS = (
    "torch bf16",
    "torch fp8 row-wise",
    "torch fp8 row-wise, fast sums",
    "torch fp8 tensor-wise",
    "torch _int_mm",
    "XLA int8",
)
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
def matrices(case: Case) -> tuple[Any, Any]:
    """x (m, k) and w (n, k), bf16: ours and every peer multiply their own rounding of these."""
    keys = jax.random.split(jax.random.key(0), 2)
    x, w = (jax.random.normal(key, (rows, case.k)) for key, rows in zip(keys, (case.m, case.n), strict=True))
    return x.astype(jnp.bfloat16), (w * case.k**-0.5).astype(jnp.bfloat16)


@functools.partial(jax.jit, static_argnums=0)
def random_operands(case: Case) -> tuple[Any, ...]:
    (m, n), (x, w) = (case.m, case.n), matrices(case)
    grouped = case.variant == "grouped"
    x, w = quantize_int8(x, group=128 if grouped else None), quantize_int8(w)
    keys = jax.random.split(jax.random.key(1), 3)
    bias = jax.random.normal(keys[0], (n,))
    gate = jax.random.normal(keys[1], (n,)) if case.variant == "gated" else None
    residual = jax.random.normal(keys[2], (m, n), jnp.bfloat16) if case.variant == "gated" else None
    return x.data, w.data, x.scale if grouped else x.scale[:, 0], w.scale[:, 0], bias, gate, residual


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

    x, w = (torch.from_dlpack(a) for a in operands[:2])
    x16, w16 = (torch.from_dlpack(a) for a in matrices(case))
    (x8, rows), (w8, columns) = (_rounded_to_e4m3(a, a.abs().amax(1, keepdim=True)) for a in (x16, w16))
    (x8_all, x_scale), (w8_all, w_scale) = (_rounded_to_e4m3(a, a.abs().amax()) for a in (x16, w16))
    by_row = functools.partial(
        torch._scaled_mm, x8, w8.T, scale_a=rows, scale_b=columns.T.contiguous(), out_dtype=torch.bfloat16
    )
    by_tensor = functools.partial(
        torch._scaled_mm, x8_all, w8_all.T, scale_a=x_scale, scale_b=w_scale, out_dtype=torch.bfloat16
    )
    runs = {
        "torch bf16": lambda: x16 @ w16.T,
        "torch _int_mm": lambda: torch._int_mm(x, w.T),
        "torch fp8 row-wise": by_row,
        "torch fp8 row-wise, fast sums": functools.partial(by_row, use_fast_accum=True),
        "torch fp8 tensor-wise": functools.partial(by_tensor, use_fast_accum=True),
    }
    if case.variant != "grouped":
        xla = jax.jit(functools.partial(run_xla, case))
        runs["XLA int8"] = lambda: xla(*operands)
    return runs


def _rounded_to_e4m3(x, largest):
    import torch

    scale = largest.float() / 448
    return (x.float() / scale).to(torch.float8_e4m3fn), scale


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

    What limits is power, so what counts is how little is moved. Each K step loads a CTA's tile of both sides from the
    second-level cache, at 1500 TFLOP/s about 8.6 TB/s for 256 x 128, 6.7 for 256 x 192, 4.8 for pairs of those. And
    each product of 64 rows reads all its columns from shared memory, so wide tiles read less.
    """
    config = Int8MatmulConfig
    if case.variant == "grouped":
        return [config(tile_m=64, stages=5, cluster=c) for c in (None, "m", "n")] + [
            config(tile_m=64, tile_n=192, stages=4, cluster=c) for c in (None, "m")
        ]
    band = even_band(case.n, 192)
    three = config(tile_m=64, tile_n=192, stages=3, slots=3, multipliers=3, band=band)
    if case.variant == "gated":
        found = [config(), config(band=16), config(cluster="n"), config(cluster="m")]
        found += [config(tile_n=192, stages=3, slots=slots, band=band) for slots in (2, 3)]
        return [*found, config(stages=3, slots=4), three]
    wide = config(tile_n=192, stages=3, band=band)
    found = [wide, dataclasses.replace(wide, cluster="m"), three]
    found += [dataclasses.replace(wide, slots=3), config(cluster="n")]
    found += [config(tile_m=64, tile_n=256, slots=1, cluster=c) for c in ("m", None)]
    return [*found, dataclasses.replace(wide, cluster="n"), config()]


def timed(case: Case, config: Int8MatmulConfig) -> float:
    operands = same_operands(case)
    kernel = jax.jit(functools.partial(run_kernel, case, config=config))
    error = spot_error(case, kernel(*operands))
    if not error < 1e-2:
        raise ValueError(f"wrong result: relative error {error:.1e}")
    return milliseconds({"ours": lambda: kernel(*operands)}, rounds=3)["ours"]
