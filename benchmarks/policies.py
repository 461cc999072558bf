"""What policies cost: a step that skips every block, and a `6bit` forward with all routes forced to eight bits.

    python benchmarks/policies.py --size 1.3B --output benchmarks/policies.jsonl

skip      a step that skips all blocks, beside the time that the bytes it has to move take at the rate of a copy: all
          deltas read, the activations read and written
forward   one branch through all blocks with predicted precision (three routes compiled in, all decisions INT8), the
          delta cache and what both observe, beside W4A8 without any of it; and each of the three alone. `--dense`:
          beside bf16 too

Random weights. Both sides of a comparison run in one process, in interleaved rounds; figures are medians. On a CPU, and
with `--size micro`, it says whether the program runs and nothing about a GPU.
"""

import dataclasses
import functools
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not part of the installed package

from benchmarks.kernel_times import print_kernels  # noqa: E402
from benchmarks.kernels.measure import milliseconds  # noqa: E402
from benchmarks.provenance import provenance  # noqa: E402
from sixbit_jax import recipes  # noqa: E402
from sixbit_jax.cli import Parser, run  # noqa: E402
from sixbit_jax.models import wan  # noqa: E402
from sixbit_jax.models.wan_config import GROUPS, WAN_1_3B, WAN_14B, WanConfig  # noqa: E402
from sixbit_jax.models.wan_modules import abstract_params  # noqa: E402
from sixbit_jax.pipeline import token_multiple  # noqa: E402
from sixbit_jax.policies import PolicySpec, PredictedPrecision, TemporalDeltaCache, delta_store  # noqa: E402
from sixbit_jax.quantize import quantize  # noqa: E402
from sixbit_jax.routes import Route  # noqa: E402
from sixbit_jax.sampler import COMPILER_OPTIONS  # noqa: E402

SIZES = {"1.3B": WAN_1_3B, "14B": WAN_14B, "micro": WanConfig(2, 1, 256, text_dim=32, freq_dim=32)}
LATENTS = {"1.3B": (21, 60, 104), "14B": (21, 60, 104), "micro": (2, 8, 8)}
# What 6bit adds to W4A8, one by one and together.
PARTS = {
    "plain": (),
    "routes": ("routes",),
    "statistics": ("statistics",),
    "cache": ("cache",),
    "all": ("routes", "statistics", "cache"),
}
HIGH = 1  # the place of INT8 among PredictedPrecision's routes


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="1.3B")
    parser.add_argument("--what", choices=("skip", "forward", "both"), default="both")
    parser.add_argument("--cache-format", default="bf16", help="f32, bf16, int8 or nvfp4")
    parser.add_argument("--linear", help="the implementation of the INT8 routes; the fastest that runs by default")
    parser.add_argument("--attention", help="the implementation of attention")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="of a forward; plain and all too"
    )
    parser.add_argument("--dense", action="store_true", help="a forward of the same weights in bf16 beside them")
    parser.add_argument("--kernels", type=int, default=0, help="list so many kernels of a forward that take longest")
    parser.add_argument("--output", type=Path, help="append one JSON line")
    args = parser.parse_args()

    result: dict[str, Any] = {"what": "policies", "size": args.size, "cache_format": args.cache_format}
    result |= {"linear": args.linear, "attention": args.attention}
    if args.what != "forward":
        result |= skip_times(args.size, args.cache_format)
    if args.what != "skip":
        chosen = {"linear": args.linear, "attention": args.attention}
        parts = ["plain", *args.parts, "all"]
        result |= forward_times(args.size, args.cache_format, chosen, parts, dense=args.dense, kernels=args.kernels)
    result |= provenance("benchmarks/policies.py")
    print(json.dumps(result, indent=1))
    if args.output:
        with args.output.open("a") as file:
            file.write(json.dumps(result) + "\n")


def sizes(size: str) -> PolicySpec:
    config, latents = SIZES[size], LATENTS[size]
    tokens = int(np.prod(config.grid(latents)))
    tokens += -tokens % token_multiple(tokens, jax.default_backend())
    return PolicySpec(config.num_layers, GROUPS, 1, 50, tokens, config.dim, "bf16")


def skip_times(size: str, cache_format: str) -> dict[str, Any]:
    """A stack whose blocks are all skipped, in the carry of a loop over steps as in sampling."""
    spec, policy = sizes(size), TemporalDeltaCache(tau=1.0, cache_format=cache_format, together="step")
    memory = jax.jit(lambda: policy.allocate(spec))()
    x = jnp.ones((1, spec.tokens, spec.dim), jnp.bfloat16)
    skip = jnp.ones((spec.layers,), bool)
    run_stack = jax.jit(
        functools.partial(skipped_stack, policy), donate_argnums=(0, 1), compiler_options=COMPILER_OPTIONS
    )
    state = {"memory": memory, "x": x}

    def step() -> Any:
        state["x"], state["memory"] = run_stack(state["x"], state["memory"], skip)
        return state["x"]

    # Large enough for its rate to be that of the memory: a copy of x would be over before the host asks for the next.
    big = jnp.ones((1 << (29 if jax.default_backend() == "gpu" else 19),), jnp.bfloat16)
    # The driver's copy is faster than a kernel of XLA's that reads and writes as much.
    copies = {"copy": jax.jit(jnp.copy), "negation": jax.jit(jnp.negative)}
    found = milliseconds({"skip": step, **{name: functools.partial(run, big) for name, run in copies.items()}})
    rate = 2 * big.nbytes / min(found[name] for name in copies)
    moved = policy.nbytes(spec) + 2 * x.nbytes
    least = moved / rate
    by = delta_store.explain(cache_format, x).name
    times = {"skip_ms": found["skip"], "skip_least_ms": least, "skip_ratio": found["skip"] / least}
    return {"skip_by": by, **times, "skip_bytes": moved}


def skipped_stack(policy: TemporalDeltaCache, x: Any, memory: Any, skip: Any) -> tuple[Any, Any]:
    """A step's blocks; one that does run costs something, so nothing can be simplified away."""

    def blocks(run_block: Any, x: Any, memory: Any) -> Any:
        def layer(carry: Any, decision: Any) -> Any:
            x, memory, observed = run_block(lambda x: (jnp.tanh(x), {}), *carry, decision)
            return (x, memory), observed

        carry, observed = jax.lax.scan(layer, (x, memory), (slots, skip))
        return *carry, observed

    slots = jnp.arange(skip.size)
    return policy.run_stack(blocks, x, memory, slots, skip)[:2]


def forward_times(
    size: str,
    cache_format: str,
    implementations: Mapping[str, str | None] | None = None,
    parts: Sequence[str] = ("plain", "all"),
    *,
    dense: bool = False,
    kernels: int = 0,
) -> dict[str, Any]:
    """All routes INT8: what is left of the difference is policies, statistics and conditionals."""
    spec, config = sizes(size), SIZES[size]
    in_bf16 = random_dense_params(config)
    params = quantized(in_bf16)
    inputs = random_inputs(params, config, LATENTS[size])
    cache = TemporalDeltaCache(tau=0.0, cache_format=cache_format, together="step")
    build = functools.partial(forward, config, spec, params, inputs, cache, **(implementations or {}))
    runs = {name: build(PARTS[name]) for name in dict.fromkeys(parts)}
    if dense:
        runs["bf16"] = forward(config, spec, in_bf16, inputs, cache, (), act=None)
    del in_bf16
    for name, each in runs.items():
        print(f"{name}: compiled and run once in {seconds(each):.0f} s", file=sys.stderr, flush=True)
    found = milliseconds(runs)
    print(found, file=sys.stderr, flush=True)
    for name in ("plain", "all") if kernels else ():
        print(f"{name}:")
        print_kernels(runs[name], kernels)
    plain, whole = (jax.tree.leaves(runs[name]())[0] for name in ("plain", "all"))
    difference = jnp.abs(whole - plain).max() / jnp.abs(plain).max()
    return {
        "forward_ms": found,
        "forward_overhead": found["all"] / found["plain"] - 1,
        "forward_difference": float(difference),
    }


def forward(
    config: WanConfig,
    spec: PolicySpec,
    params: Any,
    inputs: Any,
    cache: TemporalDeltaCache,
    parts: tuple[str, ...],
    *,
    act: str | None = "int8",
    linear: str | None = None,
    attention: str | None = None,
) -> Callable[[], Any]:
    """One branch through all blocks with some parts of 6bit. The cache, where there is one, is updated in place."""
    table = ((0.0,) * len(GROUPS),) * config.num_layers
    routes = PredictedPrecision(table, table, error_threshold=-1.0).routes if "routes" in parts else (Route(act),)
    routes = tuple(Route(r.act, linear) if r.act == "int8" else r for r in routes)
    route = jnp.full((config.num_layers, len(GROUPS)), HIGH if "routes" in parts else 0, jnp.int32)
    skip = jnp.zeros((config.num_layers,), bool)
    static: dict[str, Any] = {"token_multiple": token_multiple(spec.tokens, jax.default_backend())}
    static["attention_implementation"] = attention
    if "statistics" in parts:
        static["outlier_ratios"] = True
    if "cache" in parts:
        static["run_stack"] = lambda blocks, x, memory, decisions: cache.run_stack(blocks, x, memory, *decisions)

    @functools.partial(jax.jit, donate_argnums=1, compiler_options=COMPILER_OPTIONS)
    def program(inputs: Any, memory: Any, params: Any, route: Any, skip: Any) -> Any:
        cached = {"memory": memory, "decisions": (jnp.arange(config.num_layers), skip)} if "cache" in parts else {}
        latents, timestep, context = inputs
        return wan.forward(
            params,
            config=config,
            latents=latents,
            timestep=timestep,
            context=context,
            routes=routes,
            route_index=route,
            **static,
            **cached,
        )

    state = {"memory": jax.jit(lambda: cache.allocate(spec))() if "cache" in parts else None}

    def run() -> Any:
        velocity, state["memory"], observed = program(inputs, state["memory"], params, route, skip)
        return velocity, observed

    return run


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def random_inputs(params: Any, config: WanConfig, shape: tuple[int, int, int]) -> tuple[Any, Any, Any]:
    """Latents, a timestep, and a prompt's keys and values."""
    rng = np.random.default_rng(0)
    draw = lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)
    context = jax.jit(lambda p, text: wan.embed_context(p, config, text))(params, draw((1, 512, config.text_dim)))
    return draw((1, *shape, 16)).astype(jnp.float32), jnp.full((1,), 500.0), context


def random_params(config: WanConfig) -> Any:
    """NVFP4 in the blocks."""
    return quantized(random_dense_params(config))


def random_dense_params(config: WanConfig) -> Any:
    """Made on the device, leaf by leaf."""

    def draw(path: Any, leaf: Any) -> Any:
        key = jax.random.key(zlib.crc32(jax.tree_util.keystr(path).encode()))
        scale = leaf.shape[-1] ** -0.5 if len(leaf.shape) > 1 else 0.1
        return (scale * jax.random.normal(key, leaf.shape, jnp.float32)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config, jnp.bfloat16))


def quantized(dense: Any) -> Any:
    return quantize(dense, dataclasses.replace(recipes.get("minmax-w4a4"), name="random"))


if __name__ == "__main__":
    run(main)
