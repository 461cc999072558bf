#!/usr/bin/env python3
"""Report what every block does at every step: its relative change, and the outlier ratio before each linear group."""

import argparse
from pathlib import Path

from sixbit_jax import cli

DEFAULT_MODEL = Path(__file__).resolve().parent.parent / "assets" / "tiny-wan"


def parser() -> argparse.ArgumentParser:
    p = cli.Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--model", default=str(DEFAULT_MODEL), help="converted checkpoint, diffusers folder, or hub id")
    what = p.add_mutually_exclusive_group()
    what.add_argument("--held-out", type=int, default=8, help="so many prompts of the tiny world's held-out ones")
    what.add_argument("--prompts", type=Path, help="a .txt file, one prompt a line")
    p.add_argument("--steps", type=int, help="denoising steps; default: the model's own")
    p.add_argument("--seed", type=int, default=0, help="of the initial noise")
    p.add_argument("--dtype", choices=("bf16", "f32"), default="f32", help="what the model computes in")
    p.add_argument("--output", type=Path, default=Path("outputs/block-statistics"), help="folder of the report")
    return p


def main() -> None:
    args = parser().parse_args()

    from sixbit_jax import block_statistics, outputs
    from sixbit_jax.evaluate.prompts import held_out, read_prompts
    from sixbit_jax.pipeline import WanPipeline

    prompts = [prompt.text for prompt in (read_prompts(args.prompts) if args.prompts else held_out(args.held_out))]
    outputs.check_writable("--output", args.output / "block-statistics.json")
    pipe = WanPipeline.load(args.model, args.dtype)
    settings = {"num_inference_steps": args.steps, "seed": args.seed}
    statistics = block_statistics.collect(pipe, prompts, **settings)
    facts = {"model": Path(args.model).name, "dtype": args.dtype, "prompts": len(prompts), "seed": args.seed}
    block_statistics.write(args.output, statistics, facts)
    print((args.output / "block-statistics.md").read_text())


if __name__ == "__main__":
    cli.run(main)
