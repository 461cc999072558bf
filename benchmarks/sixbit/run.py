"""Run the experiments on a model, and write a table for each.

    python benchmarks/sixbit/run.py --held-out 32 --steps 50 --output benchmarks/sixbit/tiny-wan

Every video is one line of runs.jsonl, and none is made twice: an interrupted run goes on, more prompts add to it. All
recipes start from the same noise; figures are against the dense model, or against `--reference`: w4a16 has the same
rounded weights, so that only what activations lose is left.
"""

import argparse
import dataclasses
import functools
import inspect
import shlex
import sys
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not part of the installed package

from benchmarks.sixbit import stack_residual  # noqa: E402
from benchmarks.sixbit.experiments import EXPERIMENTS, Bench  # noqa: E402
from sixbit_jax import checkpoint, outputs, presets, recipes  # noqa: E402
from sixbit_jax.cli import Parser, check_at_least, run  # noqa: E402
from sixbit_jax.components import locate  # noqa: E402
from sixbit_jax.errors import UserError, nearest  # noqa: E402
from sixbit_jax.evaluate.comparison import Summary, markdown, summarize  # noqa: E402
from sixbit_jax.evaluate.prompts import held_out, read_prompts, shown  # noqa: E402
from sixbit_jax.evaluating import Case, Plan, read_runs, run_recipes  # noqa: E402
from sixbit_jax.pipeline import WanPipeline  # noqa: E402
from sixbit_jax.recipes import Recipe  # noqa: E402


def main() -> None:
    p = Parser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--model", default=str(ROOT / "assets" / "tiny-wan"), help="with a calibration for 6bit")
    p.add_argument("--experiments", default=",".join(EXPERIMENTS), help="which, with commas between them")
    what = p.add_mutually_exclusive_group()
    what.add_argument("--held-out", type=int, default=32, metavar="N", help="prompts that training never shows")
    what.add_argument("--prompts", type=Path, metavar="FILE", help=".txt or .jsonl, as scripts/evaluate.py takes")
    p.add_argument("--steps", type=int, default=50, help="denoising steps")
    p.add_argument("--dtype", choices=("bf16", "f32"), default="f32", help="of what is not quantized")
    p.add_argument("--reference", help="recipe that figures are against; the dense model by default")
    p.add_argument("--processes", type=int, default=1, help="that share the recipes; each holds a model")
    p.add_argument("--batch", type=int, default=1, help="videos at a time; pays for a small model on a GPU")
    p.add_argument("--output", type=Path, default=Path("outputs/sixbit"), help="folder; a run in it is continued")
    args = p.parse_args()

    names = [name.strip() for name in args.experiments.split(",")]
    for name in names:
        if name not in EXPERIMENTS:
            raise UserError(f'--experiments: unknown "{name}"; {nearest(name, EXPERIMENTS)}')
    for flag, number in (("--processes", args.processes), ("--batch", args.batch)):
        check_at_least(flag, number)
    plan = make_plan(args)
    bench = make_bench(args, plan)
    for name in names:
        chosen = EXPERIMENTS[name](bench)
        bench.run(chosen)
        write(args, plan, name, chosen)


def make_plan(args: argparse.Namespace) -> Plan:
    """Dense sampling is the reference if nothing else is asked for."""
    prompts = read_prompts(args.prompts) if args.prompts else held_out(args.held_out)
    outputs.check_writable("--output", args.output / "runs.jsonl")
    reference = dense(args)
    if args.reference:
        asked = dataclasses.replace(recipes.load(args.reference), dtype=args.dtype)
        reference, _ = presets.complete(asked, args.model, steps=args.steps)
    manifest = checkpoint.read_manifest(locate(args.model, args.dtype))
    return Plan(
        model=args.model,
        recipes=(reference,),
        cases=tuple(Case(prompt, 0) for prompt in prompts),
        overrides={"num_inference_steps": args.steps},
        statistics=None,
        identity=f"{manifest.contents} none",
        folder=args.output,
        batch=args.batch,
    )


def dense(args: argparse.Namespace) -> Recipe:
    return recipes.get("f32" if args.dtype == "f32" else "bf16")


def make_bench(args: argparse.Namespace, plan: Plan) -> Bench:
    run = functools.partial(run_recipes, plan, processes=args.processes)

    def ran(recipe: Recipe, figure: str) -> float:
        run([recipe])
        return float(np.mean([line["figures"][figure] for line in lines(plan, recipe)]))

    def schedules() -> stack_residual.Calibration:
        pipe = WanPipeline.load(plan.model, dense(args))
        return stack_residual.calibrate(pipe, pipe.settings(prompt=shown(1)[0].text, num_inference_steps=args.steps))

    return Bench(args.model, args.steps, args.dtype, run, ran, schedules)


def lines(plan: Plan, recipe: Recipe) -> list[dict]:
    known = read_runs(plan.folder)
    return [known[plan.key(recipe, case)] for case in plan.cases]


def write(args: argparse.Namespace, plan: Plan, name: str, chosen: list[Recipe]) -> None:
    """NAME.json and NAME.md: figures, and the command that makes them again."""
    reference = lines(plan, plan.recipes[0])
    summaries: list[Summary] = [summarize(recipe.name, lines(plan, recipe), reference) for recipe in chosen]
    facts = {
        "experiment": name,
        "command": shlex.join(["python", "benchmarks/sixbit/run.py", *sys.argv[1:]]),
        "model": Path(plan.model).name,
        "weights": plan.identity.split()[0],
        "reference": plan.recipes[0].name,
        "prompts": len(plan.cases),
        "steps": args.steps,
        "device": reference[0]["device"],
        "jax": jax.__version__,
    }
    outputs.write_json(plan.folder / f"{name}.json", facts | {"recipes": [dataclasses.asdict(s) for s in summaries]})
    title = f"# {facts['model']}: {name}\n\n{inspect.cleandoc(EXPERIMENTS[name].__doc__ or '')}\n\n"
    told = f"{facts['prompts']} prompts, {args.steps} steps, against {facts['reference']}. Means ± standard errors.\n\n"
    page = f"{title}{told}{markdown(summaries)}\n```\n{facts['command']}\n```\n"
    outputs.write_text(plan.folder / f"{name}.md", page)
    print(page)


if __name__ == "__main__":
    run(main)
