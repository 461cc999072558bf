#!/usr/bin/env python3
"""Calibrate a model: which linears bear few bits at which steps, told by the step before, and what may be skipped."""

import argparse
from pathlib import Path

from sixbit_jax import cli

DEFAULT_MODEL = Path(__file__).resolve().parent.parent / "assets" / "tiny-wan"


def parser() -> argparse.ArgumentParser:
    p = cli.Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--model", default=str(DEFAULT_MODEL), help="dense checkpoint, diffusers folder, or hub id")
    p.add_argument("--recipe", default="6bit", help="whose lowest route's error is predicted")
    what = p.add_mutually_exclusive_group()
    what.add_argument("--tiny-world-prompts", type=int, default=8, help="so many captions of tiny-wan's training")
    what.add_argument("--prompts", type=Path, help="a .txt file, one prompt a line")
    p.add_argument(
        "--error",
        choices=("linear", "velocity"),
        default="linear",
        help="what to predict: a linear's error as such (the paper), or as far as it reaches the model's velocity",
    )
    p.add_argument("--target-bits", type=float, default=6.0, help="width of the activations on average")
    p.add_argument("--target-skip-rate", type=float, default=0.2, help="share of block executions to skip")
    p.add_argument("--tau-prompts", type=int, default=4, help="of the prompts, so many to choose thresholds on")
    p.add_argument("--batch", type=int, default=1, help="of these at a time; pays for a small model on a GPU")
    p.add_argument("--steps", type=int, help="denoising steps; default: the model's own")
    p.add_argument("--seed", type=int, default=0, help="of the first prompt's noise; the others count on")
    p.add_argument("--dtype", choices=("bf16", "f32"), default="f32", help="what the model computes in")
    p.add_argument("--preset", type=Path, metavar="FILE.json", help="the result; default: where sampling looks for it")
    p.add_argument("--output", type=Path, default=Path("outputs/predictor"), help="folder of the report")
    return p


def main() -> None:
    args = parser().parse_args()

    from sixbit_jax.calibrating import calibrate_command

    calibrate_command(args)


if __name__ == "__main__":
    cli.run(main)
