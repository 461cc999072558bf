#!/usr/bin/env python3
"""Write a model's outlier twin: the same videos, with a few channels far louder than the rest before its linears."""

import argparse
from pathlib import Path

from sixbit_jax import cli

DEFAULT_MODEL = Path(__file__).resolve().parent.parent / "assets" / "tiny-wan"


def parser() -> argparse.ArgumentParser:
    p = cli.Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="a pipeline folder in diffusers' layout")
    p.add_argument("--output", type=Path, required=True, help="the folder to write, in the same layout")
    p.add_argument("--exponent", type=int, default=5, help="outliers are 2 to this power times louder")
    p.add_argument("--channels", type=int, default=1, help="outliers among every 128 channels")
    p.add_argument("--sites", nargs="+", help="linear groups to plant before; default: all that can be")
    p.add_argument("--seed", type=int, default=0, help="which channels")
    p.add_argument("--overwrite", action="store_true", help="replace a twin that is there")
    return p


def main() -> None:
    args = parser().parse_args()

    from sixbit_jax.tiny.outliers import SITES, Outliers
    from sixbit_jax.tiny.twin import write_twin

    outliers = Outliers(args.exponent, args.channels, tuple(args.sites or SITES), args.seed)
    write_twin(args.model, args.output, outliers, overwrite=args.overwrite)
    total = sum(path.stat().st_size for path in args.output.rglob("*") if path.is_file())
    what = f"{2**args.exponent} times louder before {', '.join(outliers.sites)}"
    print(f"wrote {args.output}, {total / 2**20:.1f} MiB: {what}")


if __name__ == "__main__":
    cli.run(main)
