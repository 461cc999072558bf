"""Attention at the token counts of Wan 1.3B and 14B, next to cuDNN bf16 (JAX) and torch's FlashAttention-2.

The kernel's time is counted alone ("ours") and with its prologue, XLA's and our own ("with prologue", "with fused
prologue"; "rotated, with prologue" has XLA rotate Q and K first).
"""

import dataclasses
import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernels.measure import Ceilings, milliseconds, relative_error, with_peers
from pallas_kernels.attention_int8 import AttentionConfig, Before, attention_bf16, attention_int8, kernel_sm90, operands
from pallas_kernels.attention_int8.config import FEW, MOST_KEYS, TABLE, case_name, choose_config
from pallas_kernels.attention_int8.numbers import HEAD
from pallas_kernels.attention_int8.operands import Operands
from pallas_kernels.mosaic import device_facts

NAME = "attention_int8"
TOKENS = {"480p": 32760, "720p": 75600}
HEADS = {"1.3B": 12, "14B": 40}
PROMPT = 512
KINDS = {
    "int8": ("s8", "e4m3"),
    "int8, bf16 V": ("s8", "bf16"),
    "int8, f16 V": ("s8", "f16"),
    "bf16": ("bf16", "bf16"),
}
COLUMNS = (
    "case",
    "variant",
    "ms",
    "TFLOP/s",
    "of ceiling",
    "vs cuDNN bf16",
    "vs torch FA2",
    "with prologue, ms",
    "fused, ms",
    "rotated, ms",
    "error",
    "cosine",
)
PEERS = ("cuDNN bf16", "torch FA2", "FA3")
SPEED = {"int8": 2, "int8, bf16 V": 4 / 3, "int8, f16 V": 4 / 3, "bf16": 1}  # of both products, in those of bf16


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    heads: int
    queries: int
    keys: int
    variant: str = "int8"
    promote: int | None = None  # other than the configuration says: what it costs, and what it loses


def cases() -> list[Case]:
    found = []
    for tokens, s in TOKENS.items():
        for model, heads in HEADS.items():
            found += [Case(f"{model} self {tokens}", heads, s, s, variant) for variant in ("int8", "int8, f16 V")]
            found += [Case(f"{model} cross {tokens}", heads, s, PROMPT, variant) for variant in list(KINDS)[:3]]
    found += [Case("1.3B self 480p", 12, 32760, 32760, variant) for variant in ("int8, bf16 V", "bf16")]
    return found + [Case("1.3B self 480p", 12, 32760, 32760, promote=n) for n in (8, 16, 0)]


def decides(case: Case) -> bool:
    """How fast over 32,760 and 75,600 tokens, and no slower than cuDNN over a prompt."""
    own = case.queries == case.keys and case.variant in ("int8", "int8, f16 V") and case.promote is None
    return own or case.name == "1.3B cross 480p"


def measure(case: Case, ceilings: Ceilings) -> dict[str, Any]:
    q, k, v = same_operands(case)
    config = choose(case)
    prepared = jax.jit(functools.partial(prepare, case, config=config))(q, k, v)
    kernel = jax.jit(functools.partial(run_kernel, case, config=config))
    whole = jax.jit(functools.partial(run_whole, case, config=config))
    fused = jax.jit(functools.partial(run_whole, case, config=config, prologue="fused"))
    rotated = jax.jit(functools.partial(run_whole, case, config=config, prologue="fused", rotate=True))
    others = {"with fused prologue": lambda: fused(q, k, v), "rotated, with prologue": lambda: rotated(q, k, v)}
    others = others if case.variant != "bf16" else {}
    ours = {"ours": lambda: kernel(*prepared), "with prologue": lambda: whole(q, k, v)}
    runs, reasons = with_peers(ours, lambda: {**others, **peers(q, k, v)})
    ms = milliseconds(runs)
    out = whole(q, k, v)
    flop = 4 * case.heads * case.queries * case.keys * HEAD
    return {
        **dataclasses.asdict(case),
        "config": dataclasses.asdict(config),
        "ms": {name: round(value, 4) for name, value in ms.items()},
        "tflops": round(flop / ms["ours"] * 1e-9, 1),
        "of_ceiling": round(flop / ms["ours"] * 1e3 / (SPEED[case.variant] * ceilings.bf16), 3),
        "ratio": {name: round(value / ms["ours"], 3) for name, value in ms.items() if name in PEERS},
        **spot_error(q, k, v, out),
        "same twice": bool((out == whole(q, k, v)).all()),
        "not run": reasons,
    }


def row(result: dict[str, Any]) -> tuple[Any, ...]:
    ratio = lambda name: f"{result['ratio'][name]:.2f}x" if name in result["ratio"] else "-"
    return (
        f"{result['name']} ({result['heads']} x {result['queries']} x {result['keys']})",
        result["variant"] + ("" if result["promote"] is None else f", promote {result['promote']}"),
        f"{result['ms']['ours']:.3f}",
        f"{result['tflops']:.0f}",
        f"{100 * result['of_ceiling']:.0f} %",
        ratio("cuDNN bf16"),
        ratio("torch FA2"),
        f"{result['ms']['with prologue']:.3f}",
        f"{result['ms'].get('with fused prologue', float('nan')):.3f}",
        f"{result['ms'].get('rotated, with prologue', float('nan')):.3f}",
        f"{result['error']:.1e}",
        f"{result['cosine']:.5f}",
    )


def random_operands(case: Case) -> tuple[Any, ...]:
    """(b, tokens, heads, 128) in bf16. Scores of unit variance: a softmax that averages, where rounding shows most."""
    keys = jax.random.split(jax.random.key(0), 3)
    tokens = (case.queries, case.keys, case.keys)
    make = lambda key, n: jax.random.normal(key, (1, n, case.heads, HEAD), jnp.bfloat16)
    return tuple(make(key, n) for key, n in zip(keys, tokens, strict=True))


same_operands = functools.lru_cache(maxsize=1)(random_operands)  # for all candidates of a case


def choose(case: Case) -> AttentionConfig:
    kind = device_facts()[0]
    config = choose_config(case.queries, case.keys, case.heads, kinds=KINDS[case.variant], kind=kind)
    return config if case.promote is None else dataclasses.replace(config, promote=case.promote)


def prepare(case: Case, q, k, v, *, config: AttentionConfig) -> Operands:
    if case.variant == "bf16":
        return operands.as_bf16(q, k, v, Before(), config=config)
    return operands.quantize(q, k, v, Before(), valid_keys=case.keys, pv=KINDS[case.variant][1], config=config)


def run_kernel(case: Case, *prepared, config: AttentionConfig):
    static = dict(heads=case.heads, queries=case.queries, valid_keys=case.keys, with_lse=False)
    return kernel_sm90.run(Operands(*prepared), config=config, **static)[0]


def run_whole(case: Case, q, k, v, config: AttentionConfig | None = None, **how: Any):
    if case.variant == "bf16":
        return attention_bf16(q, k, v, config=config)
    return attention_int8(q, k, v, pv=KINDS[case.variant][1], config=config, **how)


def peers(q, k, v) -> dict[str, Any]:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    cudnn = jax.jit(functools.partial(jax.nn.dot_product_attention, implementation="cudnn"))
    heads_first = [torch.from_dlpack(x).transpose(1, 2).contiguous() for x in (q, k, v)]

    def flash():
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(*heads_first)

    found = {"cuDNN bf16": lambda: cudnn(q, k, v), "torch FA2": flash}
    if importlib.util.find_spec("flash_attn_interface"):
        attend = importlib.import_module("flash_attn_interface").flash_attn_func
        tokens_first = [torch.from_dlpack(x) for x in (q, k, v)]
        found["FA3"] = lambda: attend(*tokens_first)
    return found


def spot_error(q, k, v, out) -> dict[str, float]:
    """Of some queries of one head in float64, the ragged end included."""
    rows = np.unique(
        np.concatenate([np.random.default_rng(0).integers(0, q.shape[1], 24), q.shape[1] - 1 - np.arange(8)])
    )
    head = q.shape[2] - 1
    q, k, v, out = (np.asarray(x[0, :, head].astype(jnp.float32), np.float64) for x in (q[:, rows], k, v, out[:, rows]))
    scores = q @ k.T * HEAD**-0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    exact = weights / weights.sum(-1, keepdims=True) @ v
    cosine = float((exact * out).sum() / np.linalg.norm(exact) / np.linalg.norm(out))
    return {"error": relative_error(out, exact), "cosine": cosine}


# Tuning.


def tuned_cases() -> list[Case]:
    """One of each entry of the table: other heads and more tokens share it. First what the others wait for."""
    model, tokens = "1.3B", TOKENS["480p"]
    own = [Case(f"{model} self 480p", HEADS[model], tokens, tokens, variant) for variant in KINDS]
    few = [Case(f"{model} cross 480p", HEADS[model], tokens, PROMPT, variant) for variant in list(KINDS)[:3]]
    return [own[2], own[0], few[2], few[1], few[0], own[1], own[3]]


def table_key(case: Case) -> tuple[Any, str]:
    return TABLE, case_name(case.queries, case.keys, case.heads, kinds=KINDS[case.variant])


def candidates(case: Case) -> list[AttentionConfig]:
    """First what should help most, as time may run out. None sums more keys than is right: a clock would choose it."""
    config = functools.partial(AttentionConfig)
    if case.variant == "bf16":
        return [config(block_kv=128, cluster=c, tail=1, turns=turns) for c in (1, 2) for turns in (True, False)]
    if case.keys <= FEW:  # 128 divides the prompt's 512: no keys that do not exist, and no mask, which spills
        found = [config(block_kv=128, stages=s, cluster=c) for s in (2, 3) for c in (1, 2)]
        return found + ([config(block_kv=128, stages=4)] if case.variant == "int8" else []) + [choose(case)]
    if case.variant == "int8":
        found = [config(block_kv=kv, stages=s, promote=MOST_KEYS // kv) for kv, s in ((224, 2), (160, 3), (192, 2))]
        found += [config(linear=3), config(turns=False), config(tail=1), config(tail=3), config(cluster=1)]
        return found + [config(block_kv=128, stages=3, promote=MOST_KEYS // 128), config(promote=2)]
    shapes = ((192, 2), (128, 3), (160, 2), (128, 2))
    found = [config(block_kv=kv, stages=s) for kv, s in shapes]
    found += [config(block_kv=192, turns=False), config(block_kv=192, tail=3), config(block_kv=192, tail=1)]
    return found + [config(block_kv=128, stages=3, turns=False), config(block_kv=192, cluster=1)]


def timed(case: Case, config: AttentionConfig) -> float:
    q, k, v = same_operands(case)
    prepared = jax.jit(functools.partial(prepare, case, config=config))(q, k, v)
    kernel = jax.jit(functools.partial(run_kernel, case, config=config))
    error = spot_error(q, k, v, kernel(*prepared))
    # Of noise: weights and V in 8 bits 4.2 % in the emulation too, Q and K 1.2 %. A cosine would not see a factor.
    if not error["error"] < {"int8": 0.05, "bf16": 0.006}.get(case.variant, 0.02):
        raise ValueError(f"wrong result: error {error['error']:.4f}, cosine {error['cosine']:.5f}")
    return milliseconds({"ours": lambda: kernel(*prepared)}, rounds=3)["ours"]
