#!/usr/bin/env python3
"""Checkpoint to quantized checkpoint: `python scripts/quantize.py --input wan-1.3b --recipe w4a8 --output wan-w4a8`."""

import argparse
from pathlib import Path

from sixbit_jax import cli


def parser() -> argparse.ArgumentParser:
    p = cli.Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--input", type=Path, required=True, help="dense checkpoint, diffusers or original folder, or file")
    p.add_argument("--output", type=Path, required=True, help="the checkpoint folder to write")
    p.add_argument("--recipe", required=True, help="a preset or a .json file")
    p.add_argument("--text-encoder-recipe", help="store the text encoder's weights as this recipe does")
    p.add_argument("--dtype", choices=("bf16", "f32"), help="of what is not quantized; default: the recipe's")
    p.add_argument("--calibrate-prompts", type=Path, metavar="FILE", help="run the dense model on these, one a line")
    p.add_argument("--calibrate-steps", type=int, help="denoising steps of those runs; default: the checkpoint's")
    p.add_argument("--save-statistics", type=Path, metavar="FILE.npz", help="keep what calibration saw")
    p.add_argument("--statistics", type=Path, metavar="FILE.npz", help="what an earlier calibration saw")
    p.add_argument("--overwrite", action="store_true", help="replace an existing checkpoint")
    return p


def main() -> None:
    args = parser().parse_args()

    from sixbit_jax.quantizing import quantize_command

    quantize_command(args)


if __name__ == "__main__":
    cli.run(main)
