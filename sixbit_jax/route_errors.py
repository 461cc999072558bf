"""What the low route costs every linear while the dense model samples: the samples that a predictor is fitted to.

    pipeline, prompts --collect--> gamma (n, i, e, l), error (n, i, e, l, g) --predictor.fit--> Fit

Only the errors are simulated; the video stays that of the dense model, so all steps see what they would see.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from sixbit_jax.errors import UserError
from sixbit_jax.linear import linear
from sixbit_jax.models.wan_config import GROUP_WEIGHTS, GROUPS
from sixbit_jax.policies import NoCache
from sixbit_jax.quantizers import AbstractQuantizer
from sixbit_jax.routes import Route
from sixbit_jax.shapes import Params


@dataclasses.dataclass(frozen=True)
class RouteError:
    """Relative Frobenius error of a group's output under `route`, its weight stored as `method` stores it.

    Measured on `rows` tokens, evenly spread: a product of all would cost as much as the model itself. The stored weight
    has to lie next to the dense one (see `with_rough`): some methods search, and not at every step.
    """

    method: AbstractQuantizer
    route: Route
    rows: int = 256

    def __call__(self, group: str, x: Float[Array, "b s k"], p: Params) -> Float32[Array, ""]:
        stride = max(1, x.shape[1] // self.rows)
        seen = x[:, ::stride].astype(jnp.float32)
        exact = linear(seen, p["weight"].astype(jnp.float32))
        rough = linear(seen, p["rough"], act=self.route.act, implementation=self.route.implementation)
        return jnp.linalg.norm(rough - exact) / jnp.linalg.norm(exact)


@dataclasses.dataclass(frozen=True)
class Samples:
    """Of n prompts, i steps, e branches, l layers and g linear groups, in the order of the model's groups."""

    gamma: Float[np.ndarray, "n i e l"]
    error: Float[np.ndarray, "n i e l g"]


def collect(
    pipe: Any,
    prompts: Sequence[str],
    observer: RouteError,
    *,
    report: Callable[[str], None] = lambda prompt: None,
    **settings: Any,
) -> Samples:
    """Run `pipe`, whose weights must be dense, on every prompt. Keyword arguments are those of a call."""
    if pipe.recipe.weights:
        raise UserError(f"calibration runs the dense model; recipe {pipe.recipe.name} is quantized")
    recipe = dataclasses.replace(pipe.recipe, cache=NoCache(measure=True))
    experts = tuple(with_rough(params, observer.method) for params in pipe.components.experts)
    observing = type(pipe)(dataclasses.replace(pipe.components, experts=experts), recipe, observe=observer)
    runs = []
    for index, prompt in enumerate(prompts):
        report(prompt)
        chosen = observing.settings(prompt=prompt, **settings | {"seed": settings.get("seed", 0) + index})
        runs.append(_observe(observing, chosen))
    return Samples(np.stack([gamma for gamma, _ in runs]), np.stack([error for _, error in runs]))


def with_rough(params: Params, method: AbstractQuantizer) -> Params:
    """The weight of every linear group also as `method` stores it, next to the dense one."""
    groups = {path.removesuffix("/weight") for path in GROUP_WEIGHTS.values()}

    def walk(path: str, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        copy = {name: walk(f"{path}/{name}".lstrip("/"), each) for name, each in tree.items()}
        return copy | {"rough": method(tree["weight"], None)} if path in groups else copy

    return cast(Params, walk("", params))


def _observe(pipe: Any, settings: Any) -> tuple[np.ndarray, np.ndarray]:
    observed = pipe.observed(settings)
    return observed["gamma"], np.stack([observed["inputs"][group] for group in GROUPS], axis=-1)
