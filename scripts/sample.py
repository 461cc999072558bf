#!/usr/bin/env python3
"""Text to video: `python scripts/sample.py --prompt "a red circle drifts to the left"`."""

import argparse
from pathlib import Path

from sixbit_jax import cli

DEFAULT_MODEL = Path(__file__).resolve().parent.parent / "assets" / "tiny-wan"


def parser() -> argparse.ArgumentParser:
    p = cli.Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--model", default=str(DEFAULT_MODEL), help="converted checkpoint, diffusers folder, or hub id")
    what = p.add_mutually_exclusive_group()
    what.add_argument("--prompt", help="what to show")
    what.add_argument("--prompt-file", type=Path, help="one prompt a line; --output is then a folder")
    p.add_argument("--negative-prompt", help="what to stay away from")
    p.add_argument("--height", type=int, help="pixels, a multiple of 16")
    p.add_argument("--width", type=int, help="pixels, a multiple of 16")
    p.add_argument("--size", help="WIDTH*HEIGHT instead of the two, as in 832*480")
    p.add_argument("--num-frames", type=int, help="4n+1")
    p.add_argument("--num-inference-steps", "--steps", type=int, help="denoising steps")
    p.add_argument("--guidance-scale", type=float, help="1 turns guidance off")
    p.add_argument("--guidance-scale-2", type=float, help="for the low-noise expert of Wan2.2 A14B")
    p.add_argument("--flow-shift", "--sample-shift", type=float, help="3 at 480p, 5 at 720p, 12 for Wan2.2")
    p.add_argument("--solver", help="unipc or euler")
    p.add_argument("--schedule", help="diffusers or wan: whose noise levels")
    p.add_argument("--seed", type=int, help="of the initial noise")
    p.add_argument("--init-latents", type=Path, metavar="FILE.npy", help="initial noise (1, c, t, h, w)")
    p.add_argument("--save-latents", type=Path, metavar="FILE.npy", help="write the result before decoding")
    p.add_argument("--recipe", help="a preset or a .json file; default: the checkpoint's, or bf16 on a GPU, else f32")
    p.add_argument("--text-encoder-recipe", help="store the text encoder's weights as this recipe does")
    p.add_argument("--statistics", type=Path, metavar="FILE.npz", help="what scripts/quantize.py saw in calibration")
    p.add_argument("--dtype", choices=("bf16", "f32"), help="overrides the recipe's number format")
    p.add_argument("--preset", type=Path, metavar="FILE.json", help="a calibration; default: the model's own")
    p.add_argument("--tau", type=float, help="delta cache: error at which a block is computed again; 0 always does")
    p.add_argument("--error-threshold", type=float, help="predicted precision: error up to which four bits do")
    p.add_argument("--cache-budget-gb", type=float, help="limit for a recipe's delta cache")
    p.add_argument("--attention", help="an attention implementation; default: the fastest that runs here")
    p.add_argument("--output", type=Path, default=Path("outputs"), help="an .mp4, or a folder")
    p.add_argument("--fps", type=int, help="frames per second of the file")
    p.add_argument("--report", action="store_true", help="also write an HTML page of what was done")
    p.add_argument("--dry-run", action="store_true", help="print memory and time estimates, make nothing")
    p.add_argument("--no-compile-cache", action="store_true", help="as SIXBIT_COMPILE_CACHE=0")
    return p


def main() -> None:
    from sixbit_jax.sampling import sample_videos

    sample_videos(parser().parse_args())


if __name__ == "__main__":
    cli.run(main)
