"""How fast tiny-wan's transformer trains: steps a second by batch, keeping intermediate results or recomputing them.

    python benchmarks/training.py --batch 128 64 --kernels 25 --output benchmarks/training.jsonl

All variants compile first and then run in interleaved rounds; figures are medians. Clips are zeros: the time of a
step does not depend on what they show. `--kernels` lists where the time of the first variant's steps goes.
"""

import collections
import functools
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not part of the installed package

from benchmarks.kernel_times import print_kernels  # noqa: E402
from benchmarks.provenance import provenance  # noqa: E402
from sixbit_jax.cli import Parser, run  # noqa: E402
from sixbit_jax.tiny import flow  # noqa: E402
from sixbit_jax.tiny.ahead import ahead  # noqa: E402
from sixbit_jax.tiny.clips import abstract_clips  # noqa: E402
from sixbit_jax.tiny.optimizer import OptimizerConfig, start  # noqa: E402
from sixbit_jax.tiny.sizes import SIZES, Sizes  # noqa: E402
from sixbit_jax.tiny.train_dit import DiTRun, train_step  # noqa: E402
from sixbit_jax.tiny.training import chunk_of  # noqa: E402

_OPTIMIZER = OptimizerConfig(peak=2e-3, muon=True)
_CLIPS = 64
_TOTAL = 10**6  # steps of the run that is pretended


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--batch", type=int, nargs="+", default=[128])
    parser.add_argument("--steps", type=int, default=20, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kernels", type=int, default=0, help="list so many kernels that take longest")
    parser.add_argument("--output", type=Path, help="append a JSON line a variant")
    args = parser.parse_args()

    sizes = SIZES[args.size]
    clips = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract_clips(sizes.vae, sizes, _CLIPS))
    variants = {
        (batch, recompute): Variant(sizes, batch, recompute, args.steps, clips)
        for batch, recompute in itertools.product(args.batch, (False, True))
    }
    seconds: dict[Any, list[float]] = collections.defaultdict(list)
    for round_ in range(args.rounds + 1):
        for key, variant in variants.items():
            taken = variant.run()
            if round_:  # the first one warms up
                seconds[key].append(taken / args.steps)
    for (batch, recompute), times in seconds.items():
        line = {"batch": batch, "recompute": recompute, "steps_per_second": round(1 / statistics.median(times), 2)}
        line |= {"size": args.size} | provenance("benchmarks/training.py")
        print(json.dumps(line), flush=True)
        if args.output:
            with args.output.open("a") as file:
                file.write(json.dumps(line) + "\n")
    if args.kernels:
        print_kernels(next(iter(variants.values())).run, args.kernels)


class Variant:
    """A way to train, compiling from when it is made."""

    def __init__(self, sizes: Sizes, batch: int, recompute: bool, steps: int, clips: Any):
        training = DiTRun(sizes, 0, batch, _CLIPS, _CLIPS, _OPTIMIZER, None, recompute, 0, 0, 0.0)
        self._clips = clips
        self._state = jax.jit(lambda key: start(_OPTIMIZER, flow.init_params(sizes, key)))(jax.random.key(0))
        chunk = chunk_of(functools.partial(train_step, training), steps)
        self._program = ahead(chunk, self._state, clips, jnp.int32(0), donate=(0,))

    def run(self) -> float:
        """Seconds of a round."""
        begun = time.perf_counter()
        self._state, _ = self._program(self._state, self._clips, jnp.int32(_TOTAL))
        jax.block_until_ready(self._state)
        return time.perf_counter() - begun


if __name__ == "__main__":
    run(main)
