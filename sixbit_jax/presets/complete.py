"""From a recipe without thresholds to one that lacks nothing."""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from sixbit_jax import checkpoint
from sixbit_jax.components import locate
from sixbit_jax.errors import UserError
from sixbit_jax.policies import NoCache
from sixbit_jax.policies.base import AbstractPolicy
from sixbit_jax.presets.preset import Preset, low_format, read_preset
from sixbit_jax.recipes import Recipe

_SHIPPED = Path(__file__).parent
# Fields of policies that a preset has, under the same names.
_FIELDS = ("slope", "offset", "error_threshold", "tau", "order")

Policy = TypeVar("Policy", bound=AbstractPolicy)


def complete(
    recipe: Recipe, model: str | Path, *, steps: int | None = None, file: Path | None = None
) -> tuple[Recipe, Preset | None]:
    """`recipe` with everything filled in that it leaves open, and the preset that said so.

    `steps`: of the run to come; default: the model's own. `file`: a preset to use, instead of one that is found. What
    is set already stays. Without a preset a recipe is complete when its thresholds were set by hand.
    """
    policies = (recipe.precision, recipe.cache)
    if not any(getattr(policy, name, ...) is None for policy in policies for name in _FIELDS):
        if file is not None:
            raise UserError(f"--preset {file}: recipe {recipe.name} leaves nothing to it")
        return recipe, None
    manifest = checkpoint.read_manifest(locate(model, recipe.dtype))
    steps = steps or manifest.pipeline.get("defaults", {}).get("num_inference_steps", 50)
    if file is not None:
        preset: Preset | None = _checked(read_preset(file), file, model, manifest.contents, recipe)
    else:
        known = [preset for preset in _known(model, recipe.dtype) if preset.contents == manifest.contents]
        fitting = [preset for preset in known if preset.fits(recipe)]
        preset = min(fitting, key=lambda each: abs(each.steps - steps), default=None)
        missing = [name for policy in policies for name in policy.missing]
        if preset is None and missing:
            raise UserError(_no_preset(recipe, model, missing, bool(known)))
    if preset is None:
        return recipe, None
    values = {name: getattr(preset, name) for name in _FIELDS}
    if not isinstance(recipe.cache, NoCache):
        values["error_threshold"] = preset.error_threshold_beside_cache
    filled = dataclasses.replace(recipe, precision=_fill(recipe.precision, values), cache=_fill(recipe.cache, values))
    return filled, preset


def home(model: str | Path, dtype: str) -> Path:
    """Where a model's own presets lie: in its checkpoint, or next to the one that was converted from it."""
    folder = locate(model, dtype)
    return (folder if folder == Path(model) else folder.parent) / "presets"


def _known(model: str | Path, dtype: str) -> list[Preset]:
    files = [*sorted(home(model, dtype).glob("*.json")), *sorted(_SHIPPED.glob("*.json"))]
    return [read_preset(file) for file in files]


def _fill(policy: Policy, values: dict[str, Any]) -> Policy:
    fields = [field.name for field in dataclasses.fields(policy) if field.name in values]  # type: ignore[arg-type]
    open_ = {name: values[name] for name in fields if getattr(policy, name) is None}
    return dataclasses.replace(policy, **open_)  # type: ignore[type-var]


def _checked(preset: Preset, file: Path, model: str | Path, contents: str, recipe: Recipe) -> Preset:
    if preset.contents != contents:
        raise UserError(f"--preset {file}: was calibrated on {preset.model}, whose weights are not those of {model}")
    if not preset.fits(recipe):
        low = low_format(recipe) or "no"
        raise UserError(
            f"--preset {file}: was calibrated for other weights or another low route ({preset.low}) than those of "
            f"recipe {recipe.name} ({low})"
        )
    return preset


def _no_preset(recipe: Recipe, model: str | Path, missing: list[str], others: bool) -> str:
    flags = " and ".join("--" + name.replace("_", "-") for name in missing)
    found = "only calibrations of other recipes" if others else "no calibration"
    return (
        f"--recipe {recipe.name}: there is {found} for {model}; make one with "
        f"`python scripts/calibrate.py --model {model} --recipe {recipe.name}`, or give {flags}"
    )
