"""What a calibration leaves behind, and its file."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from sixbit_jax import outputs
from sixbit_jax.errors import UserError
from sixbit_jax.policies.predicted import Table
from sixbit_jax.recipes import Recipe, to_json

_KIND = "sixbit-jax preset"


@dataclasses.dataclass(frozen=True)
class Preset:
    """`contents`: of the model's manifest. `weights`: the recipe's rules, as JSON. `low`: format of the low route.

    Named as the policies' fields are: `slope`, `offset`, `error_threshold` (of predicted errors), `tau`, and `order`,
    the layers that skipped most first. `error_threshold_beside_cache` makes a run with a cache as wide as
    `error_threshold` makes one without, what is skipped counting as no bits. `facts` say what was run and what it gave.
    """

    model: str
    contents: str
    weights: Any
    low: str
    steps: int
    slope: Table
    offset: Table
    error_threshold: float
    error_threshold_beside_cache: float
    tau: float
    order: tuple[int, ...]
    facts: dict[str, Any]

    def fits(self, recipe: Recipe) -> bool:
        """Thresholds of a cache hold for the weights, those of a predictor for the low route too."""
        return self.weights == stored_weights(recipe) and low_format(recipe) in (None, self.low)

    def __str__(self) -> str:
        return f"calibration of {self.model} at {self.steps} steps"


def stored_weights(recipe: Recipe) -> Any:
    """The part of a recipe's JSON that says how weights are stored."""
    return to_json(recipe)["weights"]


def low_format(recipe: Recipe) -> str | None:
    """What the recipe's lowest route rounds to, if it chooses between several."""
    routes = recipe.precision.routes
    return routes[0].act if len(routes) > 1 else None


def write_preset(path: Path, preset: Preset) -> None:
    outputs.write_json(path, {"kind": _KIND} | dataclasses.asdict(preset))


def read_preset(path: Path) -> Preset:
    """The preset in a file, or one line that says what is wrong with it."""
    try:
        data = json.loads(path.read_text())
        if data.pop("kind") != _KIND:
            raise KeyError("kind")
        tables: dict[str, Any] = {name: tuple(map(tuple, data.pop(name))) for name in ("slope", "offset")}
        return Preset(**tables, **data | {"order": tuple(data["order"])})
    except OSError as error:
        raise UserError(f"--preset {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"--preset {path}: not a preset; scripts/calibrate.py makes them") from None
