"""What `scripts/calibrate.py` runs: sample with the dense model, fit the predictor, choose the thresholds, report.

    preset        slopes, offsets, thresholds, and what they hold for (`sixbit_jax.presets`)
    predictor.md  R² of every linear group: does the error follow the relative change at all?
    predictor.png the samples behind it, a panel a group, a shade a layer

The threshold of the delta cache, and that of precision beside it, are chosen on the model as the recipe quantizes it:
rounding changes how much deltas change from step to step.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from sixbit_jax import checkpoint, cli, outputs, predictor, presets, recipes, route_errors, sensitivity
from sixbit_jax.components import locate
from sixbit_jax.errors import UserError
from sixbit_jax.models.wan_config import GROUPS
from sixbit_jax.pipeline import WanPipeline
from sixbit_jax.policies import FixedPrecision, PredictedPrecision
from sixbit_jax.predictor import Fit
from sixbit_jax.presets.preset import Preset, stored_weights
from sixbit_jax.recipes import Recipe
from sixbit_jax.route_errors import RouteError, Samples
from sixbit_jax.trials import Found, Trials, bar, find_thresholds

# What is predicted, by the name that `--error` has for it.
PREDICTED = {
    "linear": "Errors are those of a linear's own output.",
    "velocity": "Errors are scaled to what they do to the model's velocity, layer by layer and group by group.",
}


def calibrate_command(args: argparse.Namespace) -> None:
    """Run the command. What can be wrong is found before the model is loaded."""
    from sixbit_jax.evaluate.prompts import read_prompts, shown

    cli.check_at_least("--batch", args.batch)
    recipe = dataclasses.replace(recipes.load(args.recipe), dtype=args.dtype)
    observer = low_route_error(recipe)
    asked = read_prompts(args.prompts) if args.prompts else shown(args.tiny_world_prompts)
    prompts = [prompt.text for prompt in asked]
    pipe = WanPipeline.load(args.model, Recipe("dense", dtype=args.dtype))
    steps = pipe.settings(num_inference_steps=args.steps).num_inference_steps
    file = args.preset or presets.home(args.model, args.dtype) / f"{recipe.name}-{steps}-steps.json"
    outputs.check_writable("--preset", file)
    outputs.check_writable("--output", args.output / "predictor.md")
    settings = {"num_inference_steps": steps, "seed": args.seed}
    with bar("predictor", len(prompts)) as advance:
        samples = route_errors.collect(pipe, prompts, observer, report=lambda _: advance(), **settings)
    fitted = predictor.fit(samples.gamma, samples.error)
    del pipe  # its weights, before those of the quantized model come
    unrouted = dataclasses.replace(recipe, precision=FixedPrecision())
    trials = Trials.load(args.model, unrouted, prompts[: args.tau_prompts], settings, args.batch)
    effect = None
    if args.error == "velocity":
        effect = measure_effect(trials, observer)
        fitted = fitted.scaled(effect / samples.error[:, 1:].mean((0, 1, 2)))
    threshold = predictor.choose_threshold(fitted, samples.gamma, args.target_bits)
    known = fitted.policy(threshold)
    precision = recipe.precision
    if isinstance(precision, PredictedPrecision):
        tables = {name: getattr(known, name) for name in ("slope", "offset", "error_threshold")}
        precision = dataclasses.replace(precision, **tables)
    trials = trials.under(precision)
    predicted = fitted.predict(samples.gamma[:, :-1])
    found = find_thresholds(trials, predicted, threshold, args.target_bits, args.target_skip_rate)
    facts = {
        "recipe": recipe.name,
        "dtype": args.dtype,
        "prompts": len(prompts),
        "seed": args.seed,
        "target_bits": args.target_bits,
        "mean_bits": predictor.mean_bits(known, fitted, samples.gamma),
        "mean_bits_beside_cache": found.bits,
        "skip_rate": found.skip_rate,
        "groups": list(GROUPS),
        "error": args.error,
        "sensitivity": None if effect is None else effect.round(5).tolist(),
        "r2": fitted.r2.round(4).tolist(),
        "pooled_r2": fitted.pooled_r2.round(4).tolist(),
    }
    preset = make_preset(args.model, recipe, fitted, threshold, found, steps, facts)
    presets.write_preset(file, preset)
    write_report(args.output, samples, fitted, preset)
    print((args.output / "predictor.md").read_text())
    print(f"{file}: {preset}")


def measure_effect(trials: Trials, observer: RouteError) -> np.ndarray:
    with bar("sensitivity", len(trials.prompts)) as advance:
        return sensitivity.measure(trials.pipe, trials.prompts, observer.route, report=advance, **trials.settings)


def low_route_error(recipe: Recipe) -> RouteError:
    """What is to be predicted: the error of a linear under a recipe's one method and its lowest route."""
    methods = {rule.method for rule in recipe.weights if rule.method is not None}
    route = recipe.precision.routes[0]
    if len(methods) != 1 or route.act is None:
        raise UserError(f"--recipe {recipe.name}: needs one method and a format for activations, as 6bit and w4a4 have")
    return RouteError(methods.pop(), route)


def make_preset(
    model: str,
    recipe: Recipe,
    fitted: Fit,
    alone: float,
    found: Found,
    steps: int,
    facts: dict[str, Any],
) -> Preset:
    """Everything in one, slopes to six digits. `alone`: the threshold of precision without a cache."""
    policy = dataclasses.replace(fitted, slope=_short(fitted.slope), offset=_short(fitted.offset)).policy(alone)
    return Preset(
        model=Path(model).name,
        contents=checkpoint.read_manifest(locate(model, recipe.dtype)).contents,
        weights=stored_weights(recipe),
        low=str(recipe.precision.routes[0].act),
        steps=steps,
        slope=policy.slope or (),
        offset=policy.offset or (),
        error_threshold=alone,
        error_threshold_beside_cache=found.error_threshold,
        tau=found.tau,
        order=found.order,
        facts=facts,
    )


def write_report(folder: Path, samples: Samples, fitted: Fit, preset: Preset) -> None:
    """The table and the picture."""
    from sixbit_jax.scatter import write_scatter

    outputs.write_text(folder / "predictor.md", to_markdown(fitted, preset))
    write_scatter(folder / "predictor.png", _clouds(samples), ("relative change before", "error"))


def _short(values: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda value: float(f"{value:.6g}"))(values)


def to_markdown(fitted: Fit, preset: Preset) -> str:
    """A row a linear group, and what was run."""
    facts = preset.facts
    effects = facts["sensitivity"]  # None if they were not asked for
    column = ("", "") if effects is None else (" effect on the velocity: median |", "---|")
    lines = [
        "# Predictor",
        "",
        f"Error of `{facts['recipe']}`'s low route ({preset.low}) in the linears of {preset.model}, predicted from",
        f"their block's relative change a step before: {facts['prompts']} prompts, {preset.steps} steps.",
        f"{PREDICTED[facts['error']]}",
        f"Threshold {preset.error_threshold:.4f} for {facts['mean_bits']:.2f} bits on average, "
        f"{preset.error_threshold_beside_cache:.4f} beside the cache for {facts['mean_bits_beside_cache']:.2f}, what "
        f"is skipped counting as none; tau {preset.tau:.4f} skips {facts['skip_rate']:.0%} of the blocks.",
        "",
        "| linear group | R² of a layer: median | least | most | falling slopes | R² of one line for all layers |"
        + column[0],
        "|---|---|---|---|---|---|" + column[1],
    ]
    for index, group in enumerate(GROUPS):
        r2, falling = fitted.r2[:, index], int((fitted.slope[:, index] < 0).sum())
        lines.append(
            f"| {group} | {np.median(r2):.2f} | {r2.min():.2f} | {r2.max():.2f} | {falling} of {len(r2)} | "
            f"{fitted.pooled_r2[index]:.2f} |"
            + ("" if effects is None else f" {np.median(np.asarray(effects)[:, index]):.2%} |")
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
