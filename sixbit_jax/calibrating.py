"""What `scripts/calibrate.py` runs: sample with the dense model, fit the predictor, choose the threshold, report.

predictor.json    slopes, offsets, threshold, R², and what they hold for
predictor.md      R² of every linear group: does the error follow the relative change at all?
predictor.png     the samples behind it, a panel a group, a shade a layer
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sixbit_jax import outputs, predictor, recipes, route_errors
from sixbit_jax.errors import UserError
from sixbit_jax.models.wan_config import GROUPS
from sixbit_jax.policies import FixedPrecision
from sixbit_jax.predictor import Fit
from sixbit_jax.recipes import Recipe
from sixbit_jax.route_errors import RouteError, Samples


def calibrate_command(args: argparse.Namespace) -> None:
    """Run the command. What can be wrong is found before the model is loaded."""
    from sixbit_jax.evaluate.prompts import held_out, read_prompts
    from sixbit_jax.pipeline import WanPipeline

    observer = low_route_error(recipes.load(args.recipe))
    prompts = [prompt.text for prompt in (read_prompts(args.prompts) if args.prompts else held_out(args.held_out))]
    outputs.check_writable("--output", args.output / "predictor.json")
    pipe = WanPipeline.load(args.model, Recipe("dense", dtype=args.dtype))
    with tqdm(total=len(prompts), desc="calibrate", unit="prompt", dynamic_ncols=True, disable=None) as bar:
        settings = {"num_inference_steps": args.steps, "seed": args.seed}
        samples = route_errors.collect(pipe, prompts, observer, report=lambda _: bar.update(), **settings)
    fitted = predictor.fit(samples.gamma, samples.error)
    threshold = predictor.choose_threshold(fitted, samples.gamma, args.target_bits)
    facts = {
        "model": Path(args.model).name,
        "fingerprint": pipe.components.fingerprint,
        "recipe": args.recipe,
        "dtype": args.dtype,
        "prompts": len(prompts),
        "steps": samples.gamma.shape[1],
        "seed": args.seed,
        "target_bits": args.target_bits,
    }
    write(args.output, samples, fitted, threshold, facts)
    print((args.output / "predictor.md").read_text())


def low_route_error(recipe: Recipe) -> RouteError:
    """What is to be predicted: the error of a linear under a recipe's one method and one route."""
    methods = {rule.method for rule in recipe.weights if rule.method is not None}
    if len(methods) != 1 or not isinstance(recipe.precision, FixedPrecision) or recipe.precision.route.act is None:
        raise UserError(f"--recipe {recipe.name}: needs one method and one activation format, as w4a4 has")
    return RouteError(methods.pop(), recipe.precision.route)


def write(folder: Path, samples: Samples, fitted: Fit, threshold: float, facts: dict[str, Any]) -> None:
    """The three files."""
    from sixbit_jax.scatter import write_scatter

    policy = fitted.policy(threshold)
    numbers = {
        "error_threshold": threshold,
        "mean_bits": predictor.mean_bits(policy, fitted, samples.gamma),
        "groups": list(GROUPS),
        "slope": fitted.slope.tolist(),
        "offset": fitted.offset.tolist(),
        "r2": fitted.r2.tolist(),
        "pooled_r2": fitted.pooled_r2.tolist(),
    }
    outputs.write_json(folder / "predictor.json", facts | numbers)
    outputs.write_text(folder / "predictor.md", to_markdown(fitted, facts | numbers))
    write_scatter(folder / "predictor.png", _clouds(samples), ("relative change before", "error"))


def to_markdown(fitted: Fit, facts: dict[str, Any]) -> str:
    """A row a linear group, and what was run."""
    lines = [
        "# Predictor",
        "",
        f"Error of `{facts['recipe']}` in the linears of {facts['model']}, predicted from their block's relative",
        f"change a step before: {facts['prompts']} prompts, {facts['steps']} steps.",
        f"Threshold {facts['error_threshold']:.4f}",
        f"for {facts['mean_bits']:.2f} bits on average.",
        "",
        "| linear group | R² of a layer: median | least | most | falling slopes | R² of one line for all layers |",
        "|---|---|---|---|---|---|",
    ]
    for index, group in enumerate(GROUPS):
        r2, falling = fitted.r2[:, index], int((fitted.slope[:, index] < 0).sum())
        lines.append(
            f"| {group} | {np.median(r2):.2f} | {r2.min():.2f} | {r2.max():.2f} | {falling} of {len(r2)} | "
            f"{fitted.pooled_r2[index]:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _clouds(samples: Samples) -> dict[str, list[np.ndarray]]:
    """Per group a cloud for every layer."""
    before, after = samples.gamma[:, :-1], samples.error[:, 1:]
    return {
        group: [
            np.stack([before[..., layer].ravel(), after[..., layer, index].ravel()], axis=-1)
            for layer in range(before.shape[-1])
        ]
        for index, group in enumerate(GROUPS)
    }
