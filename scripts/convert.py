#!/usr/bin/env python3
"""PyTorch checkpoint to ours: `python scripts/convert.py --input Wan2.1-T2V-1.3B-Diffusers --output wan-1.3b`."""

import argparse
import os
from pathlib import Path

from sixbit_jax import cli


def parser() -> argparse.ArgumentParser:
    p = cli.Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--input", type=Path, required=True, help="diffusers folder, original Wan folder, or a weight file")
    p.add_argument("--output", type=Path, required=True, help="the checkpoint folder to write")
    p.add_argument("--dtype", choices=("f32", "bf16"), default="bf16", help="of the matrices; the VAE is always f32")
    p.add_argument("--component", help="convert this one alone: transformer, transformer_2, text_encoder or vae")
    p.add_argument("--verify", action="store_true", help="read the result back and compare every tensor")
    p.add_argument("--overwrite", action="store_true", help="replace an existing checkpoint")
    return p


def main() -> None:
    args = parser().parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # conversion is host work; a GPU may be busy or absent

    from converters.convert import convert_checkpoint
    from converters.report import describe

    source, results = convert_checkpoint(
        args.input, args.output, args.dtype, component=args.component, compare=args.verify, overwrite=args.overwrite
    )
    print(describe(source, results, args.output))


if __name__ == "__main__":
    cli.run(main)
