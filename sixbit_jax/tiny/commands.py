"""What `scripts/train_tiny.py` runs: the flags of each stage turned into its run, stage and budget."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from sixbit_jax import compile_cache
from sixbit_jax.errors import UserError
from sixbit_jax.tiny.export import Defaults, export
from sixbit_jax.tiny.optimizer import OptimizerConfig
from sixbit_jax.tiny.sizes import SIZES
from sixbit_jax.tiny.train_dit import DiTRun, train_dit
from sixbit_jax.tiny.train_vae import VAERun, adopt_vae, train_vae
from sixbit_jax.tiny.training import Budget, Stage

# Flags that change what a run computes; a resumed run must repeat them.
_COMMON_SETTINGS = ("size", "seed", "batch", "rate", "warmup", "ema", "chunk")
_VAE_SETTINGS = (*_COMMON_SETTINGS, "crop")
_DIT_SETTINGS = (*_COMMON_SETTINGS, "clips", "recompute")
# Seconds kept for what interrupts and follows training when the budget is in seconds.
_VAE_RESERVE, _DIT_RESERVE = 60.0, 20.0


def vae(args: argparse.Namespace) -> None:
    budget = _budget(args, _VAE_RESERVE)
    sizes = SIZES[args.size]
    crop = min(args.crop, sizes.height, sizes.width)
    run = VAERun(sizes, args.seed, args.batch, crop, _optimizer(args, muon=False), args.checked, args.measured)
    report = train_vae(run, _stage("vae", args, _VAE_SETTINGS), budget, resume=args.resume)
    (args.work / "vae-report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


def adopt(args: argparse.Namespace) -> None:
    target = args.work / "vae.npz"
    if target.exists() and not args.overwrite:
        raise UserError(f"--work: {target} exists; add --overwrite to replace it")
    adopt_vae(args.work, args.input)
    print(f"wrote {target}: the autoencoder of {args.input}")


def dit(args: argparse.Namespace) -> None:
    budget = _budget(args, _DIT_RESERVE)
    run = DiTRun(
        sizes=SIZES[args.size],
        seed=args.seed,
        batch=args.batch,
        clips=args.clips,
        encoded=args.encoded,
        optimizer=_optimizer(args, muon=True),
        attention=args.attention,
        recompute=args.recompute,
        shown=args.shown,
        sample_steps=args.sample_steps,
        guidance=args.guidance_scale,
    )
    train_dit(run, _stage("dit", args, _DIT_SETTINGS), budget, resume=args.resume)


def write_folder(args: argparse.Namespace) -> None:
    defaults = Defaults(args.sample_steps, args.guidance_scale)
    export(args.work, args.output, SIZES[args.size], defaults, overwrite=args.overwrite)
    total = sum(path.stat().st_size for path in args.output.rglob("*") if path.is_file())
    print(f"wrote {args.output}, {total / 2**20:.1f} MiB")


def _budget(args: argparse.Namespace, reserve: float) -> Budget:
    return Budget(args.steps, args.seconds, time.perf_counter(), reserve, args.chunk)


def _stage(name: str, args: argparse.Namespace, flags: tuple[str, ...]) -> Stage:
    """Turns the compile cache on, and protects a finished run from being started over by mistake."""
    compile_cache.enable()
    args.work.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {flag: getattr(args, flag) for flag in flags}
    stage = Stage(name, Path(args.work), settings, args.save_seconds)
    if stage.state_file.exists() and not (args.resume or args.overwrite):
        raise UserError(
            f"--work: {stage.state_file} exists; add --resume to go on from it or --overwrite to start over"
        )
    return stage


def _optimizer(args: argparse.Namespace, *, muon: bool) -> OptimizerConfig:
    return OptimizerConfig(peak=args.rate, warmup=args.warmup, ema=args.ema, muon=muon)
