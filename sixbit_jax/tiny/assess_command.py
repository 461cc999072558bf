"""What `scripts/assess_tiny.py` runs: load once, assess every pair of steps and guidance, write after each."""

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import jax

from sixbit_jax import cli, compile_cache, outputs
from sixbit_jax.components import Components
from sixbit_jax.errors import UserError
from sixbit_jax.tiny.assess import Assessment, Outcome, assess_captions
from sixbit_jax.tiny.assess_report import write_clips, write_outcomes, write_summary
from sixbit_jax.tiny.assess_vae import assess_autoencoder, reconstruct
from sixbit_jax.tiny.tallies import ALL

_SHOWN = ("colour", "shape", "motion", "direction", "background")
_LEAST = {"prompts": 0, "clips": 0, "seeds": 1, "batch": 1}


def assess_folder(args: argparse.Namespace) -> None:
    """Everything the flags ask for; a run that is stopped leaves what it has measured."""
    _check(args)
    compile_cache.enable()
    dtype = args.dtype or ("bf16" if jax.default_backend() == "gpu" else "f32")
    components = Components.load(args.model, dtype)
    lines: list[dict[str, Any]] = []
    if args.clips:
        lines.append(_autoencoder(components, args.clips, args.output))
        write_summary(args.output, lines)
    outcomes: dict[str, Outcome] = {}
    for wanted in _wanted(args, components.defaults) if args.prompts else []:
        begun = time.perf_counter()
        outcome = assess_captions(components, wanted)
        outcomes[f"guidance-{wanted.guidance:g}-steps-{wanted.steps}"] = outcome
        lines.append({"what": "captions", "dtype": dtype} | outcome.summary())
        print(_line(lines[-1], time.perf_counter() - begun), flush=True)
        write_summary(args.output, lines)
        write_outcomes(args.output, outcomes)
    print(f"wrote {args.output}")


def _check(args: argparse.Namespace) -> None:
    for flag, least in _LEAST.items():
        cli.check_at_least(f"--{flag}", getattr(args, flag), least)
    for steps in args.steps or []:
        cli.check_at_least("--steps", steps)
    if not (args.prompts or args.clips):
        raise UserError("--prompts 0 and --clips 0: nothing is left to measure")
    outputs.check_writable("--output", args.output / "summary.jsonl")


def _wanted(args: argparse.Namespace, defaults: dict[str, Any]) -> list[Assessment]:
    steps = args.steps or [defaults["num_inference_steps"]]
    scales = args.guidance_scale or [defaults["guidance_scale"]]
    return [
        Assessment(args.prompts, args.seeds, args.batch, count, scale)
        for count, scale in itertools.product(steps, scales)
    ]


def _autoencoder(components: Components, count: int, folder: Path) -> dict[str, Any]:
    clips = reconstruct(components, count)
    folder.mkdir(parents=True, exist_ok=True)
    write_clips(folder / "autoencoder.png", clips)
    line = {"what": "autoencoder"} | assess_autoencoder(clips)
    worst = min(line["accuracy_autoencoded"].values())
    print(f"autoencoder: {line['psnr_mean']:.2f} dB, readings at least {worst:.1%} right", flush=True)
    return line


def _line(line: dict[str, Any], seconds: float) -> str:
    answers = line["counts"][ALL]
    shares = ", ".join(f"{name} {answers[name]['right'] / answers[name]['total']:.1%}" for name in _SHOWN)
    return f"{line['steps']} steps, guidance {line['guidance']:g}: {shares} ({seconds:.0f} s)"
