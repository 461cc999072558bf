#!/usr/bin/env python3
"""Measure tiny-wan: caption accuracy of generated videos, distance between seeds, and the autoencoder's ceiling."""

import argparse
import json
from pathlib import Path

from sixbit_jax import cli

DEFAULT_MODEL = Path(__file__).resolve().parent.parent / "assets" / "tiny-wan"


def main() -> None:
    p = cli.Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--model", default=str(DEFAULT_MODEL), help="a folder that train_tiny.py exported")
    p.add_argument("--prompts", type=int, default=128, help="held-out prompts")
    p.add_argument("--seeds", type=int, default=2, help="videos a prompt")
    p.add_argument("--batch", type=int, default=32, help="videos at once")
    p.add_argument("--steps", type=int, default=20, help="denoising steps")
    p.add_argument("--guidance-scale", type=float, nargs="+", default=[4.0], help="one assessment each")
    p.add_argument("--dtype", choices=("bf16", "f32"), default="f32", help="of transformer and text encoder")
    p.add_argument("--clips", type=int, default=128, help="rendered videos for the autoencoder's ceiling; 0: none")
    p.add_argument("--output", type=Path, default=Path("outputs/assessment"), help="folder of the sheet and the JSON")
    args = p.parse_args()

    from sixbit_jax.tiny.assess import Assessment, assess, assess_autoencoder

    results: dict[str, object] = {"autoencoder": assess_autoencoder(args.model, args.clips)} if args.clips else {}
    for guidance in args.guidance_scale:
        wanted = Assessment(args.prompts, args.seeds, args.batch, args.steps, guidance)
        results[f"guidance {guidance:g}"] = assess(args.model, wanted, args.output, dtype=args.dtype)
        print(json.dumps(results[f"guidance {guidance:g}"]), flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "assessment.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results.get("autoencoder")))


if __name__ == "__main__":
    cli.run(main)
