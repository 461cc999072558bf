#!/usr/bin/env python3
"""Train tiny-wan: `train_tiny.py vae --work DIR`, then `dit --work DIR`, then `export --work DIR --output FOLDER`."""

import argparse
from pathlib import Path

from sixbit_jax import cli

SIZES = ("tiny", "micro")


def parser() -> argparse.ArgumentParser:
    p = cli.Parser(description=__doc__)
    commands = p.add_subparsers(dest="command", required=True, parser_class=cli.Parser)
    _vae_flags(_stage(commands, "vae", "stage 1: the autoencoder", rate=1e-3, batch=32, chunk=20))
    _adopt_flags(_command(commands, "adopt", "in place of stage 1: take the autoencoder of a folder"))
    _dit_flags(_stage(commands, "dit", "stage 2: text encoder and transformer", rate=2e-3, batch=128, chunk=50))
    _export_flags(_command(commands, "export", "write a folder in diffusers' layout"))
    return p


def _command(commands: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
    p = commands.add_parser(name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--work", type=Path, required=True, help="the folder of this training")
    p.add_argument("--size", choices=SIZES, default="tiny", help="micro is for tests")
    p.add_argument("--overwrite", action="store_true", help="replace what an earlier run wrote")
    return p


def _stage(
    commands: argparse._SubParsersAction, name: str, text: str, *, rate: float, batch: int, chunk: int
) -> argparse.ArgumentParser:
    p = _command(commands, name, text)
    p.add_argument(
        "--steps",
        type=int,
        help="of the whole run, a multiple of --chunk; more than before with --resume: go on longer",
    )
    p.add_argument("--seconds", type=float, help="stop then; without --steps, choose as many as fit, all included")
    p.add_argument("--resume", action="store_true", help="go on from the state saved in --work")
    p.add_argument("--seed", type=int, default=0, help="of weights, data and noise")
    p.add_argument("--batch", type=int, default=batch, help="videos a step")
    p.add_argument("--rate", type=float, default=rate, help="highest learning rate")
    p.add_argument("--warmup", type=int, default=200, help="steps to reach it")
    p.add_argument("--ema", type=float, default=0.999, help="decay of the averaged weights")
    p.add_argument("--chunk", type=int, default=chunk, help="steps a call of the compiled program")
    p.add_argument("--save-seconds", type=float, default=120.0, help="between saved states")
    return p


def _vae_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--crop", type=int, default=80, help="side of the windows that are trained on, a multiple of 8")
    p.add_argument("--checked", type=int, default=64, help="held-out videos of the report")
    p.add_argument("--measured", type=int, default=2048, help="videos of the latent statistics")
    p.set_defaults(run="vae")


def _adopt_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--input", type=Path, required=True, help="a folder in diffusers' layout")
    p.set_defaults(run="adopt")


def _dit_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--clips", type=int, default=131072, help="videos encoded at the start and trained on")
    p.add_argument("--encoded", type=int, default=64, help="of them at a time")
    p.add_argument("--attention", help="an attention implementation; default: the fastest that runs here")
    p.add_argument("--recompute", action="store_true", help="keep a seventh of the memory for the backward pass")
    p.add_argument("--shown", type=int, default=16, help="videos on a sheet of samples")
    p.add_argument("--sample-steps", type=int, default=20, help="of the sheets")
    p.add_argument("--guidance-scale", type=float, default=4.0, help="of the sheets")
    p.set_defaults(run="dit")


def _export_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--output", type=Path, required=True, help="the folder to write")
    p.add_argument("--sample-steps", type=int, default=20, help="the default of the folder")
    p.add_argument("--guidance-scale", type=float, default=4.0, help="the default of the folder")
    p.set_defaults(run="write_folder")


def main() -> None:
    args = parser().parse_args()

    from sixbit_jax.tiny import commands

    getattr(commands, args.run)(args)


if __name__ == "__main__":
    cli.run(main)
