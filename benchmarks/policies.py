"""What policies cost: a step that skips every block, and a `6bit` forward with all routes forced to eight bits.

    python benchmarks/policies.py --size 1.3B --output benchmarks/policies.jsonl

skip      the scan over blocks with every block skipped, beside the time that the bytes it has to move take at the
          rate of a copy: each block reads its delta and the activations, and writes the activations
forward   one branch through all blocks with predicted precision (three routes compiled in, all decisions INT8), the
          delta cache and what both observe, beside W4A8 without any of it

Random weights. Both sides of a comparison run in one process, in interleaved rounds; figures are medians. On a CPU, and
with `--size micro`, it says whether the program runs and nothing about a GPU.
"""

import dataclasses
import functools
import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not part of the installed package

from benchmarks.kernels.measure import milliseconds  # noqa: E402
from benchmarks.provenance import provenance  # noqa: E402
from sixbit_jax import recipes  # noqa: E402
from sixbit_jax.cli import Parser, run  # noqa: E402
from sixbit_jax.models import wan  # noqa: E402
from sixbit_jax.models.wan_config import GROUPS, WAN_1_3B, WAN_14B, WanConfig  # noqa: E402
from sixbit_jax.models.wan_modules import abstract_params  # noqa: E402
from sixbit_jax.policies import PolicySpec, PredictedPrecision, TemporalDeltaCache  # noqa: E402
from sixbit_jax.policies.measures import note_outlier_ratio  # noqa: E402
from sixbit_jax.quantize import quantize  # noqa: E402
from sixbit_jax.routes import Route  # noqa: E402

SIZES = {"1.3B": WAN_1_3B, "14B": WAN_14B, "micro": WanConfig(2, 1, 256, text_dim=32, freq_dim=32)}
LATENTS = {"1.3B": (21, 60, 104), "14B": (21, 60, 104), "micro": (2, 8, 8)}
HIGH = 1  # the place of INT8 among PredictedPrecision's routes


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="1.3B")
    parser.add_argument("--what", choices=("skip", "forward", "both"), default="both")
    parser.add_argument("--cache-format", default="bf16", help="f32, bf16, int8 or nvfp4")
    parser.add_argument("--output", type=Path, help="append one JSON line")
    args = parser.parse_args()

    result: dict[str, Any] = {"what": "policies", "size": args.size, "cache_format": args.cache_format}
    if args.what != "forward":
        result |= skip_times(args.size, args.cache_format)
    if args.what != "skip":
        result |= forward_times(args.size, args.cache_format)
    result |= provenance("benchmarks/policies.py")
    print(json.dumps(result, indent=1))
    if args.output:
        with args.output.open("a") as file:
            file.write(json.dumps(result) + "\n")


def sizes(size: str) -> PolicySpec:
    config, latents = SIZES[size], LATENTS[size]
    tokens = int(np.prod(config.grid(latents)))
    tokens += -tokens % (256 if jax.default_backend() == "gpu" else 1)
    return PolicySpec(config.num_layers, GROUPS, 1, 50, tokens, config.dim, "bf16")


def skip_times(size: str, cache_format: str) -> dict[str, float]:
    """A stack whose blocks are all skipped, in the carry of a loop over steps as in sampling."""
    spec, policy = sizes(size), TemporalDeltaCache(tau=1.0, cache_format=cache_format)
    memory = jax.jit(lambda: policy.allocate(spec))()
    x = jnp.ones((1, spec.tokens, spec.dim), jnp.bfloat16)
    skip = jnp.ones((spec.layers,), bool)
    run_stack = jax.jit(functools.partial(skipped_stack, policy), donate_argnums=1)
    state = {"memory": memory, "x": x}

    def step() -> Any:
        state["x"], state["memory"] = run_stack(state["x"], state["memory"], skip)
        return state["x"]

    big = jnp.ones((max(x.nbytes, 1 << 20) // 2,), jnp.bfloat16)
    copy = jax.jit(lambda big: -big)  # reads and writes all of it once; a plain copy may be elided
    found = milliseconds({"skip": step, "copy": lambda: copy(big)})
    rate = 2 * big.nbytes / found["copy"]
    moved = policy.nbytes(spec) + 2 * spec.layers * x.nbytes
    least = moved / rate
    return {"skip_ms": found["skip"], "skip_least_ms": least, "skip_ratio": found["skip"] / least, "skip_bytes": moved}


def skipped_stack(policy: TemporalDeltaCache, x: Any, memory: Any, skip: Any) -> tuple[Any, Any]:
    """The scan over blocks; a block that does run costs something, so nothing can be simplified away."""

    def layer(carry: Any, xs: Any) -> Any:
        slot, skip = xs
        x, memory, _ = policy.run(lambda x: (jnp.tanh(x), {}), *carry, slot, skip)
        return (x, memory), None

    return jax.lax.scan(layer, (x, memory), (jnp.arange(skip.size), skip))[0]


def forward_times(size: str, cache_format: str) -> dict[str, float]:
    """All routes INT8: what is left of the difference is policies, statistics and conditionals."""
    spec, config = sizes(size), SIZES[size]
    params = random_params(config)
    latents, timestep, context = random_inputs(params, config, LATENTS[size])
    table = ((0.0,) * len(GROUPS),) * config.num_layers
    precision = PredictedPrecision(table, table, error_threshold=-1.0)
    cache = TemporalDeltaCache(tau=0.0, cache_format=cache_format)
    multiple = 256 if jax.default_backend() == "gpu" else 1
    forward = functools.partial(wan.forward, config=config, token_multiple=multiple)

    @jax.jit
    def plain(params: Any, latents: Any, timestep: Any, context: Any) -> Any:
        return forward(params, latents=latents, timestep=timestep, context=context, routes=(Route("int8"),))[0]

    @functools.partial(jax.jit, donate_argnums=4)
    def adaptive(params: Any, latents: Any, timestep: Any, context: Any, memory: Any, route: Any, skip: Any) -> Any:
        run_block = lambda compute, x, memory, decision: cache.run(compute, x, memory, *decision)
        velocity, memory, observed = forward(
            params,
            latents=latents,
            timestep=timestep,
            context=context,
            routes=precision.routes,
            route_index=route,
            run_block=run_block,
            memory=memory,
            decisions=(jnp.arange(config.num_layers), skip),
            observe=note_outlier_ratio,
        )
        return velocity, memory, observed

    state = {"memory": jax.jit(lambda: cache.allocate(spec))()}
    route = jnp.full((config.num_layers, len(GROUPS)), HIGH, jnp.int32)
    skip = jnp.zeros((config.num_layers,), bool)

    def with_policies() -> Any:
        velocity, state["memory"], observed = adaptive(params, latents, timestep, context, state["memory"], route, skip)
        return velocity, observed

    without = lambda: plain(params, latents, timestep, context)
    found = milliseconds({"plain": without, "adaptive": with_policies})
    difference = jnp.abs(with_policies()[0] - without()).max() / jnp.abs(without()).max()
    return {
        "forward_plain_ms": found["plain"],
        "forward_adaptive_ms": found["adaptive"],
        "forward_overhead": found["adaptive"] / found["plain"] - 1,
        "forward_difference": float(difference),
    }


def random_inputs(params: Any, config: WanConfig, shape: tuple[int, int, int]) -> tuple[Any, Any, Any]:
    """Latents, a timestep, and a prompt's keys and values."""
    rng = np.random.default_rng(0)
    draw = lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)
    context = jax.jit(lambda p, text: wan.embed_context(p, config, text))(params, draw((1, 512, config.text_dim)))
    return draw((1, *shape, 16)).astype(jnp.float32), jnp.full((1,), 500.0), context


def random_params(config: WanConfig) -> Any:
    """NVFP4 in the blocks; made on the device, leaf by leaf."""

    def draw(path: Any, leaf: Any) -> Any:
        key = jax.random.key(zlib.crc32(jax.tree_util.keystr(path).encode()))
        scale = leaf.shape[-1] ** -0.5 if len(leaf.shape) > 1 else 0.1
        return (scale * jax.random.normal(key, leaf.shape, jnp.float32)).astype(leaf.dtype)

    dense = jax.tree_util.tree_map_with_path(draw, abstract_params(config, jnp.bfloat16))
    return quantize(dense, dataclasses.replace(recipes.get("minmax-w4a4"), name="random"))


if __name__ == "__main__":
    run(main)
