"""What a recipe is: how each weight is stored, how linears multiply at each step, which blocks run, which attention."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from sixbit_jax.errors import UserError, nearest
from sixbit_jax.policies import AbstractCachePolicy, AbstractPrecisionPolicy, FixedPrecision, NoCache
from sixbit_jax.quantizers import AbstractQuantizer
from sixbit_jax.routes import ACTIVATION_BITS

DTYPES = {"bf16": jnp.bfloat16, "f32": jnp.float32}


@dataclasses.dataclass(frozen=True)
class WeightRule:
    """How the linear weights at some paths are stored.

    `paths` is a shell pattern over slash-separated parameter paths (`*` crosses slashes), `method` the options of a
    quantizer, or None for weights that stay as they are. Of several rules the first that matches decides; a weight that
    no rule matches stays as it is.
    """

    paths: str
    method: AbstractQuantizer | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.paths, str):
            raise UserError(f"recipe: WeightRule: paths has to be a pattern, it is {self.paths!r}")
        if not isinstance(self.method, AbstractQuantizer | None):
            raise UserError(f'recipe: WeightRule "{self.paths}": method has to be a quantizer, it is {self.method!r}')


@dataclasses.dataclass(frozen=True)
class Recipe:
    """`dtype`: of what is not quantized, and of the activations between the f32 islands.

    `weights` are the rules of the transformers, `text_encoder` those of the text encoder; without rules a model stays
    dense. `attention` names an implementation, or several of which the first that runs is taken, or leaves it to the
    fastest exact one.
    """

    name: str
    dtype: str = "bf16"
    weights: tuple[WeightRule, ...] = ()
    text_encoder: tuple[WeightRule, ...] = ()
    precision: AbstractPrecisionPolicy = FixedPrecision()
    cache: AbstractCachePolicy = NoCache()
    attention: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f'recipe "{self.name}": unknown dtype "{self.dtype}"; {nearest(self.dtype, DTYPES)}')
        for field in ("weights", "text_encoder"):
            rules = getattr(self, field)
            if not isinstance(rules, tuple) or not all(isinstance(rule, WeightRule) for rule in rules):
                raise UserError(f'recipe "{self.name}": "{field}" has to be a list of WeightRule')
        formats = sorted({str(route.act) for route in self.precision.routes if route.act is not None})
        for name in formats:
            if name not in ACTIVATION_BITS:
                hint = nearest(name, filter(None, ACTIVATION_BITS))
                raise UserError(f'recipe "{self.name}": unknown activation format "{name}"; {hint}')
        if "gamma" in self.precision.needs and "gamma" not in self.cache.measures:
            cache = type(self.cache).__name__
            raise UserError(
                f'recipe "{self.name}": {type(self.precision).__name__} predicts from the relative change of blocks, '
                f'which {cache} does not measure; set "measure" of NoCache or use TemporalDeltaCache'
            )
        if formats and not any(rule.method for rule in self.weights):
            raise UserError(
                f'recipe "{self.name}": activations in {", ".join(formats)} need quantized weights; add "weights" rules'
            )

    def rules(self, component: str) -> tuple[WeightRule, ...]:
        """The rules for one component of a checkpoint.

        >>> Recipe("bf16").rules("vae")
        ()
        """
        chosen: dict[str, tuple[WeightRule, ...]] = {
            "transformer": self.weights,
            "transformer_2": self.weights,
            "text_encoder": self.text_encoder,
        }
        return chosen.get(component, ())


# Flags about a policy's field, and what a recipe without that field has not.
_POLICY_FLAGS = {
    "--tau": ("cache", "tau", "delta cache with a threshold"),
    "--error-threshold": ("precision", "error_threshold", "predicted precision"),
    "--cache-budget-gb": ("cache", "budget_gb", "delta cache"),
}


def with_flags(recipe: Recipe, values: Mapping[str, float | None]) -> Recipe:
    """`recipe` with what the user set by hand; `values` by flag, None where a flag was not given.

    >>> from sixbit_jax.policies import TemporalDeltaCache
    >>> with_flags(Recipe("mine", cache=TemporalDeltaCache()), {"--tau": 0.1}).cache.tau
    0.1
    """
    for flag, value in values.items():
        if value is None:
            continue
        part, field, what = _POLICY_FLAGS[flag]
        policy = getattr(recipe, part)
        if not hasattr(policy, field):
            raise UserError(f"{flag}: recipe {recipe.name} has no {what}")
        if not 0 <= value < float("inf"):
            raise UserError(f"{flag} {value}: needs a number from 0 up")
        recipe = dataclasses.replace(recipe, **{part: dataclasses.replace(policy, **{field: value})})
    return recipe


def with_text_encoder(recipe: Recipe, other: Recipe) -> Recipe:
    """`recipe` with the text encoder's weights stored as `other` stores a transformer's.

    >>> both = with_text_encoder(Recipe("mine"), Recipe("other", weights=(WeightRule("blocks/*"),)))
    >>> both.rules("text_encoder")
    (WeightRule(paths='blocks/*', method=None),)
    """
    return dataclasses.replace(recipe, text_encoder=other.weights)
