#!/usr/bin/env python3
"""Recipes against each other: `python scripts/evaluate.py --recipes w8a8,w4a8,w4a4 --held-out 8 --seeds 2`."""

import argparse
from pathlib import Path

from sixbit_jax import cli

DEFAULT_MODEL = Path(__file__).resolve().parent.parent / "assets" / "tiny-wan"


def parser() -> argparse.ArgumentParser:
    p = cli.Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--model", default=str(DEFAULT_MODEL), help="dense checkpoint, diffusers folder, or hub id")
    p.add_argument("--recipes", required=True, help="presets or .json files, with commas between them")
    p.add_argument("--reference", help="what all others are compared with; default: bf16, or f32 under --dtype f32")
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompts", type=Path, metavar="FILE", help=".txt, one a line; .jsonl, with the truth of each")
    what.add_argument("--held-out", type=int, metavar="N", help="N prompts that tiny-wan's training never shows")
    p.add_argument("--write-prompts", type=Path, metavar="FILE.jsonl", help="keep the prompts and their truth")
    p.add_argument("--seeds", type=int, default=1, help="videos a prompt")
    p.add_argument("--first-seed", type=int, default=0, help="the others count up from it")
    p.add_argument("--dtype", choices=("bf16", "f32"), help="of what is not quantized, in every recipe")
    p.add_argument("--text-encoder-recipe", help="store the text encoder's weights as this recipe does")
    p.add_argument("--calibrate-prompts", type=Path, metavar="FILE", help="for recipes that need statistics")
    p.add_argument("--calibrate-steps", type=int, help="denoising steps of calibration; default: the checkpoint's")
    p.add_argument("--save-statistics", type=Path, metavar="FILE.npz", help="keep what calibration saw")
    p.add_argument("--statistics", type=Path, metavar="FILE.npz", help="what an earlier calibration saw")
    p.add_argument("--height", type=int, help="pixels; default: the checkpoint's, as all that follow")
    p.add_argument("--width", type=int, help="pixels")
    p.add_argument("--num-frames", type=int, help="4n+1")
    p.add_argument("--num-inference-steps", "--steps", type=int, help="denoising steps")
    p.add_argument("--guidance-scale", type=float, help="1 turns guidance off")
    p.add_argument("--flow-shift", type=float, help="of the noise levels")
    p.add_argument("--solver", help="unipc or euler")
    p.add_argument("--processes", type=int, default=1, help="that share the recipes; each holds a model")
    p.add_argument("--batch", type=int, default=1, help="videos at a time; pays for a small model on a GPU")
    p.add_argument("--output", type=Path, default=Path("outputs/evaluation"), help="folder; a run in it is continued")
    return p


def main() -> None:
    args = parser().parse_args()

    from sixbit_jax.evaluating import evaluate_command

    evaluate_command(args)


if __name__ == "__main__":
    cli.run(main)
