#!/usr/bin/env python3
"""A pipeline folder with random weights: `python scripts/random_model.py --size tiny --output random-tiny`."""

import argparse
import os
from pathlib import Path

from sixbit_jax import cli


def parser() -> argparse.ArgumentParser:
    p = cli.Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--size", default="tiny", help="tiny, tiny-a14b (two experts), 1.3B, 14B or a14b")
    p.add_argument("--output", type=Path, required=True, help="the folder to write, in diffusers' layout")
    p.add_argument("--seed", type=int, default=0, help="of the weights")
    p.add_argument("--dtype", choices=("f32", "bf16"), default="f32", help="of the matrices; the VAE is always f32")
    return p


def main() -> None:
    args = parser().parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

    from converters.random_pipeline import write_random_pipeline

    write_random_pipeline(args.output, args.size, args.seed, args.dtype)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    cli.run(main)
