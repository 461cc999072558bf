"""Parameters under a recipe: which weights are quantized, and by what.

    params, recipe, statistics --quantize--> the same tree, with `QuantizedWeight`s where a rule says so

The rules speak of linear weights: leaves called `weight`, except tables that are looked up. Everything is decided from
paths and shapes alone, so the quantized tree of `jax.eval_shape` is known without a single weight.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from sixbit_jax.errors import UserError, nearest
from sixbit_jax.formats import QuantizedWeight, check_finite
from sixbit_jax.quantizers import AbstractQuantizer, Statistics
from sixbit_jax.recipes import Recipe, WeightRule
from sixbit_jax.shapes import Params, tree_path

# What was seen of each linear's input, by the path of its weight.
StatisticsByPath: TypeAlias = Mapping[str, Statistics]

_CALIBRATE = "; give --statistics, which scripts/quantize.py makes with --calibrate-prompts and --save-statistics"
_HINTS = {
    "transformer": _CALIBRATE,
    "transformer_2": _CALIBRATE,
    "text_encoder": "; calibration does not run on the text encoder",
}
# Weights that are looked up, not multiplied.
_TABLES = ("embedding/weight",)


def quantize(
    params: Params,
    recipe: Recipe,
    statistics: StatisticsByPath | None = None,
    *,
    component: str = "transformer",
) -> Params:
    """`params` with the weights that `recipe` quantizes as `QuantizedWeight`s. Pure; leaves may be abstract.

    Methods that balance channels need `statistics` (see `calibrate`) and refuse to do without; abstract leaves need
    none. Of several weights one at a time is in memory as f32. A rule that decides about nothing is an error.

    >>> import jax, jax.numpy as jnp
    >>> from sixbit_jax import recipes
    >>> dense = {"blocks": {"ffn_in": {"weight": jax.ShapeDtypeStruct((30, 8960, 1536), jnp.bfloat16)}}}
    >>> quantize(dense, recipes.get("w4a8"))["blocks"]["ffn_in"]["weight"].weight.packed.shape
    (30, 8960, 768)
    """
    methods = plan(params, recipe, component)
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
        check_statistics(params, methods, recipe, statistics, component)

    def leaf(path: Any, value: Any) -> Any:
        name = tree_path(path)
        return quantize_leaf(name, value, methods[name], statistics) if name in methods else value

    return jax.tree_util.tree_map_with_path(leaf, params, is_leaf=_is_quantized)


def plan(params: Params, recipe: Recipe, component: str = "transformer") -> dict[str, AbstractQuantizer]:
    """The method of every weight that is quantized, by path."""
    rules = recipe.rules(component)
    weights = [path for path, leaf in linear_weights(params).items() if not _is_quantized(leaf)]
    deciding = {path: _first_match(rules, path) for path in weights}
    for index, rule in enumerate(rules):
        if index not in deciding.values():
            raise UserError(f'recipe "{recipe.name}": {_unused(rule, weights, component)}')
    chosen = {path: rules[index].method for path, index in deciding.items() if index is not None}
    return {path: method for path, method in chosen.items() if method is not None}


def linear_weights(params: Params) -> dict[str, Any]:
    """Every weight a linear multiplies with, by path, quantized ones whole.

    >>> list(linear_weights({"head": {"weight": 0, "bias": 1}, "embedding": {"weight": 2}}))
    ['head/weight']
    """
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_quantized)
    named = {tree_path(path): leaf for path, leaf in leaves}
    return {path: leaf for path, leaf in named.items() if path.endswith("/weight") and path not in _TABLES}


def quantize_leaf(
    path: str, weight: Any, method: AbstractQuantizer, statistics: StatisticsByPath | None
) -> QuantizedWeight:
    """One weight under its method. A weight without values gets statistics without values."""
    if not isinstance(weight, jax.ShapeDtypeStruct):
        return method(_finite(path, weight), (statistics or {}).get(path))
    *batch, _, k = weight.shape
    abstract = lambda *shape: jax.ShapeDtypeStruct((*batch, *shape), jnp.float32)
    return method(weight, Statistics(abstract(k), abstract(k, k)))


def check_statistics(
    params: Params,
    methods: Mapping[str, AbstractQuantizer],
    recipe: Recipe,
    statistics: StatisticsByPath | None,
    component: str = "transformer",
) -> None:
    """Refuse what cannot be quantized before anything is: all methods are traced on shapes, which takes no time."""
    weights = linear_weights(params)
    for path, method in methods.items():
        operands = weights[path], (statistics or {}).get(path)
        try:
            method(*jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), operands))
        except (TypeError, ValueError) as error:
            hint = _HINTS.get(component, "") if "needs statistics" in str(error) else ""
            raise UserError(f'recipe "{recipe.name}": {component}/{path}: {error}{hint}') from None


def _finite(path: str, weight: Any) -> Any:
    """A NaN would spread over its whole row or matrix. Inside a trace nothing can be said of values."""
    if isinstance(weight, jax.core.Tracer):
        return weight
    try:
        return check_finite(jnp.asarray(weight), path)
    except ValueError as error:
        raise UserError(str(error)) from None


def _first_match(rules: Sequence[WeightRule], path: str) -> int | None:
    return next((index for index, rule in enumerate(rules) if fnmatch.fnmatchcase(path, rule.paths)), None)


def _unused(rule: WeightRule, weights: Sequence[str], component: str) -> str:
    if any(fnmatch.fnmatchcase(path, rule.paths) for path in weights):
        return f'rule "{rule.paths}" is never reached: earlier rules match all of its paths'
    return f'rule "{rule.paths}" matches no linear weight of the {component}; {nearest(rule.paths, weights)}'


def _is_quantized(leaf: Any) -> bool:
    return isinstance(leaf, QuantizedWeight)
