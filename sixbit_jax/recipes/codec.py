"""Recipes as plain data: every dataclass becomes an object with a "kind", every tuple a list."""

import dataclasses
from typing import Any

from sixbit_jax.errors import UserError, nearest
from sixbit_jax.policies import (
    FixedPrecision,
    NoCache,
    PredictedPrecision,
    RandomPrecision,
    ScheduledReuse,
    TemporalDeltaCache,
)
from sixbit_jax.quantizers import (
    ARQ,
    BGR,
    GPTQ,
    FourOverSix,
    MinMax,
    QuaRot,
    ScaleSearch,
    SmoothQuant,
    SVDQuant,
    ViDiTQ,
)
from sixbit_jax.recipes.recipe import Recipe, WeightRule
from sixbit_jax.routes import Route

_METHODS = (MinMax, FourOverSix, ScaleSearch, SmoothQuant, QuaRot, ViDiTQ, BGR, ARQ, SVDQuant, GPTQ)
# The classes a JSON recipe may name.
_POLICIES = (FixedPrecision, PredictedPrecision, RandomPrecision, NoCache, TemporalDeltaCache, ScheduledReuse)
_PARTS = {part.__name__: part for part in (Recipe, WeightRule, *_METHODS, *_POLICIES, Route)}


def to_json(recipe: Recipe) -> dict[str, Any]:
    """Plain data that `from_json` reads back.

    >>> to_json(Recipe("mine"))["precision"]
    {'kind': 'FixedPrecision', 'route': {'kind': 'Route', 'act': None, 'implementation': None}}
    >>> from_json(to_json(Recipe("mine"))) == Recipe("mine")
    True
    """
    return _encode(recipe)


def from_json(data: Any) -> Recipe:
    """The recipe that `to_json` wrote, or a person in its form. What a field's default says need not be there.

    >>> from_json({"kind": "Recipe", "name": "mine", "dtype": "f32"}) == Recipe("mine", dtype="f32")
    True
    """
    recipe = _decode(data)
    if not isinstance(recipe, Recipe):
        raise UserError('recipe: the outermost "kind" must be "Recipe"')
    return recipe


def _encode(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_encode(each) for each in value]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = {field.name: _encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return {"kind": type(value).__name__} | fields


def _decode(data: Any) -> Any:
    if isinstance(data, list):
        return tuple(map(_decode, data))
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
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"recipe: {kind}: {error}") from None
