#!/usr/bin/env python3
"""Measure tiny-wan: caption accuracy of generated videos, distance between seeds, and what the autoencoder costs."""

import argparse
from pathlib import Path

from sixbit_jax import cli

DEFAULT_MODEL = Path(__file__).resolve().parent.parent / "assets" / "tiny-wan"


def parser() -> argparse.ArgumentParser:
    p = cli.Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--model", default=str(DEFAULT_MODEL), help="a folder that train_tiny.py exported")
    p.add_argument("--prompts", type=int, default=128, help="held-out prompts; 0: none")
    p.add_argument("--seeds", type=int, default=2, help="videos a prompt, of the seeds from 0 up")
    p.add_argument("--batch", type=int, default=32, help="videos at once")
    p.add_argument("--steps", type=int, nargs="+", help="one assessment each; default: the model's own")
    p.add_argument("--guidance-scale", type=float, nargs="+", help="one assessment each; default: the model's own")
    p.add_argument("--dtype", choices=("bf16", "f32"), help="of the transformer; default: as sample.py here")
    p.add_argument("--clips", type=int, default=256, help="rendered clips for the autoencoder; 0: none")
    p.add_argument("--output", type=Path, default=Path("outputs/assessment"), help="folder of tables and sheets")
    return p


def main() -> None:
    args = parser().parse_args()

    from sixbit_jax.tiny.assess_command import assess_folder

    assess_folder(args)


if __name__ == "__main__":
    cli.run(main)
