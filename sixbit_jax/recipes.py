"""A recipe names a choice of everything that decides precision and work: number format of the weights, precision and
cache policy, attention.

Recipes are frozen dataclasses with named presets, and JSON both ways:

    recipes.get("bf16")              a preset by name
    recipes.load("mine.json")        a file
    recipes.to_json(recipe)          what the sidecar and the manifest store
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from sixbit_jax.errors import UserError, nearest
from sixbit_jax.policies import AbstractCachePolicy, AbstractPrecisionPolicy, FixedPrecision, NoCache
from sixbit_jax.routes import Route

DTYPES = {"bf16": jnp.bfloat16, "f32": jnp.float32}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """`dtype` of the weights and the activations between the f32 islands; `attention`.

    An implementation, or the fastest.
    """

    name: str
    dtype: str = "bf16"
    precision: AbstractPrecisionPolicy = FixedPrecision()
    cache: AbstractCachePolicy = NoCache()
    attention: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f'recipe "{self.name}": unknown dtype "{self.dtype}"; {nearest(self.dtype, DTYPES)}')


_PRESETS = {recipe.name: recipe for recipe in (Recipe("bf16"), Recipe("f32", dtype="f32"))}
# The classes a JSON recipe may name.
_PARTS = {part.__name__: part for part in (Recipe, FixedPrecision, NoCache, Route)}


def names() -> tuple[str, ...]:
    """The presets.

    >>> names()
    ('bf16', 'f32')
    """
    return tuple(_PRESETS)


def get(name: str) -> Recipe:
    """A preset by name.

    >>> get("f32").dtype
    'f32'
    """
    if name not in _PRESETS:
        raise UserError(f'--recipe: unknown recipe "{name}"; {nearest(name, _PRESETS)}, or a .json file')
    return _PRESETS[name]


def load(name_or_file: str) -> Recipe:
    """A preset, or the recipe in a JSON file."""
    if not name_or_file.endswith(".json"):
        return get(name_or_file)
    try:
        data = json.loads(Path(name_or_file).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--recipe {name_or_file}: {error}") from None
    return from_json(data)


def to_json(recipe: Recipe) -> dict[str, Any]:
    """Plain data that `from_json` reads back.

    >>> from_json(to_json(get("bf16"))) == get("bf16")
    True
    """
    return _encode(recipe)


def from_json(data: Any) -> Recipe:
    """The recipe that `to_json` wrote, or a person in its form."""
    recipe = _decode(data)
    if not isinstance(recipe, Recipe):
        raise UserError('recipe: the outermost "kind" must be "Recipe"')
    return recipe


def _encode(value: Any) -> Any:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = {field.name: _encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return {"kind": type(value).__name__} | fields


def _decode(data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    fields = dict(data)
    kind = fields.pop("kind", None)
    if kind not in _PARTS:
        raise UserError(f'recipe: unknown kind "{kind}"; {nearest(str(kind), _PARTS)}')
    known = [field.name for field in dataclasses.fields(_PARTS[kind])]
    for name in fields:
        if name not in known:
            raise UserError(f'recipe: {kind} has no field "{name}"; {nearest(name, known)}')
    try:
        return _PARTS[kind](**{name: _decode(value) for name, value in fields.items()})
    except TypeError as error:
        raise UserError(f"recipe: {error}") from None
