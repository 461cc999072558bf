"""A recipe names a choice of everything that decides precision and work: number format of the weights, precision and
cache policy, attention.

Recipes are frozen dataclasses with named presets, and JSON both ways:

    recipes.get("w4a8")              a preset by name
    recipes.load("mine.json")        a file
    recipes.to_json(recipe)          what the sidecar and the manifest store
"""

import json
from pathlib import Path

from sixbit_jax.errors import UserError
from sixbit_jax.recipes.codec import from_json, to_json
from sixbit_jax.recipes.presets import get, names
from sixbit_jax.recipes.recipe import DTYPES, Recipe, WeightRule, with_flags, with_text_encoder

__all__ = [
    "DTYPES",
    "Recipe",
    "WeightRule",
    "from_json",
    "get",
    "load",
    "names",
    "to_json",
    "with_flags",
    "with_text_encoder",
]


def load(name_or_file: str) -> Recipe:
    """A preset, or the recipe in a JSON file.

    >>> load("w4a8") == get("w4a8")
    True
    """
    if not name_or_file.endswith(".json"):
        return get(name_or_file)
    try:
        data = json.loads(Path(name_or_file).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--recipe {name_or_file}: {error}") from None
    return from_json(data)
