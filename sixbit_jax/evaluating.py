"""What `scripts/evaluate.py` does: the same videos under several recipes, measured against those of a reference recipe.

    prompts × seeds --reference recipe--> videos and latents, kept
                    --each recipe-------> figures (evaluate.comparison), one line of runs.jsonl a video
                    --> evaluation.json and evaluation.md

A run is known by a key of everything that decides its video: weights, recipe, reference, statistics and settings. What
is in runs.jsonl under its key is not made again, so an interrupted evaluation goes on where it stopped and one more
recipe costs only its own videos.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import platform
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sixbit_jax import calibrate, checkpoint, cli, outputs, presets, recipes
from sixbit_jax.components import check_recipe, locate
from sixbit_jax.errors import UserError
from sixbit_jax.evaluate.comparison import compare, judge, markdown, summarize
from sixbit_jax.evaluate.prompts import Prompt, held_out, read_prompts, write_prompts
from sixbit_jax.pipeline import Result, WanPipeline
from sixbit_jax.quantizing import gather_statistics
from sixbit_jax.realised import realised
from sixbit_jax.recipes import Recipe
from sixbit_jax.several import several
from sixbit_jax.versions import versions

_OVERRIDES = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale", "flow_shift", "solver")


@dataclasses.dataclass(frozen=True)
class Case:
    """One video to make: the same noise under every recipe."""

    prompt: Prompt
    seed: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all runs share. `identity`: of the weights and the statistics."""

    model: str
    recipes: tuple[Recipe, ...]  # the reference first
    cases: tuple[Case, ...]
    overrides: dict[str, Any]
    statistics: calibrate.StatisticsByComponent | None
    identity: str
    folder: Path
    batch: int = 1  # videos at a time

    def key(self, recipe: Recipe, case: Case) -> str:
        """Names a run by everything that decides its figures."""
        facts = (
            self.identity,
            recipes.to_json(recipe),
            recipes.to_json(self.recipes[0]),
            self.overrides,
            dataclasses.asdict(case.prompt),
            case.seed,
        )
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]

    def reference_file(self, case: Case) -> Path:
        return self.folder / "reference" / f"{self.key(self.recipes[0], case)}.npz"


def evaluate_command(args: argparse.Namespace) -> None:
    """Run the command."""
    plan = make_plan(args)
    if args.write_prompts:
        write_prompts(args.write_prompts, [case.prompt for case in plan.cases if case.seed == args.first_seed])
    run_recipes(plan, plan.recipes, args.processes)
    print(write_tables(plan, args))


def make_plan(args: argparse.Namespace) -> Plan:
    """Everything that can be wrong is looked at here."""
    chosen = [_with_options(recipes.load(name), args) for name in _names(args)]
    prompts = held_out(args.held_out) if args.held_out else read_prompts(args.prompts)
    for flag, number in (("--seeds", args.seeds), ("--processes", args.processes), ("--batch", args.batch)):
        cli.check_at_least(flag, number)
    outputs.check_writable("--output", args.output / "runs.jsonl")
    overrides = {name: getattr(args, name) for name in _OVERRIDES if getattr(args, name) is not None}
    statistics = gather_statistics(args, args.model, chosen[0].dtype)
    manifest = checkpoint.read_manifest(locate(args.model, chosen[0].dtype))
    for recipe in chosen:
        check_recipe(args.model, manifest, recipe, statistics)
    steps = overrides.get("num_inference_steps")
    chosen = [presets.complete(recipe, args.model, steps=steps)[0] for recipe in chosen]
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    return Plan(
        model=args.model,
        recipes=tuple(chosen),
        cases=tuple(Case(prompt, seed) for prompt in prompts for seed in seeds),
        overrides=overrides,
        statistics=statistics,
        identity=f"{manifest.source.get('fingerprint')} {_digest(statistics)}",
        folder=args.output,
        batch=args.batch,
    )


def run_recipes(plan: Plan, chosen: Sequence[Recipe], processes: int = 1) -> None:
    """`run_recipe` of each, of the reference first. More than one process: most of a short run is compiling."""
    run_recipe(plan, plan.recipes[0])
    if processes == 1 or len(chosen) == 1:
        for recipe in chosen:
            run_recipe(plan, recipe)
        return
    work = functools.partial(run_recipe, plan, quiet=True)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        for _ in tqdm(pool.map(work, chosen), total=len(chosen), unit="recipe", dynamic_ncols=True, disable=None):
            pass  # what went wrong there is raised here
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():  # each would finish its recipe first
            child.terminate()
        raise
    pool.shutdown()


def run_recipe(plan: Plan, recipe: Recipe, *, quiet: bool = False) -> None:
    """Make the videos of a recipe that have no figures yet."""
    known, is_reference = read_runs(plan.folder), recipe == plan.recipes[0]
    missing = [
        case
        for case in plan.cases
        if plan.key(recipe, case) not in known or (is_reference and not plan.reference_file(case).exists())
    ]
    if not missing:
        return
    pipe = WanPipeline.load(plan.model, recipe, statistics=plan.statistics)
    with tqdm(
        total=len(missing), desc=recipe.name, unit="video", dynamic_ncols=True, disable=quiet or None
    ) as progress:
        for first in range(0, len(missing), plan.batch):
            cases = missing[first : first + plan.batch]
            for case, result in zip(cases, _make(plan, pipe, cases), strict=True):
                if is_reference:
                    outputs.write_npz(plan.reference_file(case), {"video": result.video, "latents": result.latents})
                _append(plan.folder, _line(plan, pipe, case, result))
            progress.update(len(cases))


def _make(plan: Plan, pipe: WanPipeline, cases: Sequence[Case]) -> list[Result]:
    """One by one, as a user makes them, unless asked otherwise."""
    settings = [plan.overrides | {"seed": case.seed} for case in cases]
    if plan.batch == 1:
        return [cli.interruptible(functools.partial(pipe, cases[0].prompt.text, **settings[0]))]
    chosen = [pipe.settings(prompt=case.prompt.text, **each) for case, each in zip(cases, settings, strict=True)]
    return cli.interruptible(functools.partial(several, pipe, chosen))


def read_runs(folder: Path) -> dict[str, Any]:
    """The lines of runs.jsonl by their keys."""
    return outputs.read_lines(folder / "runs.jsonl", "key")


def write_tables(plan: Plan, args: argparse.Namespace) -> str:
    """The JSON and the Markdown of all that was asked for, the reference first."""
    known = read_runs(plan.folder)
    runs = [[known[plan.key(recipe, case)] for case in plan.cases] for recipe in plan.recipes]
    summaries = [summarize(recipe.name, each, runs[0]) for recipe, each in zip(plan.recipes, runs, strict=True)]
    facts = {
        "command": shlex.join(["python", f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "model": Path(plan.model).name if Path(plan.model).exists() else plan.model,
        "fingerprint": plan.identity.split()[0],
        "reference": plan.recipes[0].name,
        "dtype": args.dtype or "each recipe's own",
        "prompts": len({case.prompt.text for case in plan.cases}),
        "seeds": args.seeds,
        "settings": runs[0][0]["settings"] | {"prompt": None, "seed": None},
        "device": runs[0][0]["device"],
        "versions": runs[0][0]["versions"],
    }
    data = facts | {"recipes": [dataclasses.asdict(each) for each in summaries]}
    outputs.write_json(plan.folder / "evaluation.json", data)
    table = markdown(summaries)
    outputs.write_text(plan.folder / "evaluation.md", _page(facts, table))
    return table


def _names(args: argparse.Namespace) -> list[str]:
    asked = [name.strip() for name in args.recipes.split(",") if name.strip()]
    if not asked:
        raise UserError("--recipes: names none; give presets or .json files, with commas between them")
    reference = args.reference or ("f32" if args.dtype == "f32" else "bf16")
    return list(dict.fromkeys([reference, *asked]))


def _with_options(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    if args.text_encoder_recipe and recipe.weights:
        recipe = recipes.with_text_encoder(recipe, recipes.load(args.text_encoder_recipe))
    return dataclasses.replace(recipe, dtype=args.dtype or recipe.dtype)


def _line(plan: Plan, pipe: WanPipeline, case: Case, result: Result) -> dict[str, Any]:
    import jax

    with np.load(plan.reference_file(case)) as reference:
        figures = compare(result.video, result.latents, reference["video"], reference["latents"])
    came_to = realised(result.trace, pipe.recipe.precision.routes)
    figures |= judge(result.video, case.prompt.truth)
    figures |= {
        "activation_bits": came_to.mean_bits,
        "activation_bits_with_skipped": came_to.mean_bits_with_skipped,
        "skip_rate": came_to.skip_rate,
    }
    return {
        "key": plan.key(pipe.recipe, case),
        "recipe": pipe.recipe.name,
        "prompt": case.prompt.text,
        "seed": case.seed,
        "figures": figures,
        "weight_bytes": pipe.components.weight_bytes(),
        "dense_bytes": pipe.components.dense_bytes(),
        "timings_s": {stage: round(seconds, 3) for stage, seconds in result.timings.items()},
        "settings": result.settings.to_dict(),
        "device": f"{jax.devices()[0].device_kind}, {platform.machine()}",
        "versions": versions(("sixbit-jax", "jax", "jaxlib", "flax", "numpy")),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _append(folder: Path, line: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "runs.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def _page(facts: dict[str, Any], table: str) -> str:
    settings = facts["settings"]
    size = f"{settings['width']}x{settings['height']}, {settings['num_frames']} frames"
    steps = f"{settings['num_inference_steps']} steps, guidance {settings['guidance_scale']:g}, dtype {facts['dtype']}"
    runs = f"{facts['prompts']} prompts x {facts['seeds']} seeds, {size}, {steps}"
    return (
        f"# {facts['model']}: recipes against {facts['reference']}\n\n{runs}, same noise for every recipe. "
        f"Means ± standard errors. {facts['device']}, jax {facts['versions']['jax']}.\n\n{table}\n"
        f"```\n{facts['command']}\n```\n"
    )


def _digest(statistics: calibrate.StatisticsByComponent | None) -> str:
    if statistics is None:
        return "none"
    digest = hashlib.sha256()
    for component, by_path in sorted(statistics.items()):
        for path, each in sorted(by_path.items()):
            digest.update(f"{component}/{path}".encode() + np.asarray(each.absmax).tobytes())
    return digest.hexdigest()[:16]
