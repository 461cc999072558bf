"""What the dense model's linears see: statistics that balancing methods (SmoothQuant, ViDiT-Q) are fitted to.

    pipeline, prompts --collect--> Statistics by component and weight --save / load--> a .npz file

The model runs as it samples, and every linear group notes the largest magnitude of each input channel, over tokens,
steps, guidance branches and prompts. Keys and values of the prompt read the embedded text, which is noted apart.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from sixbit_jax import outputs
from sixbit_jax.errors import UserError
from sixbit_jax.models import wan
from sixbit_jax.models.wan_config import GROUP_WEIGHTS
from sixbit_jax.quantizers import Statistics

# By component, then by the path of the weight.
StatisticsByComponent: TypeAlias = dict[str, dict[str, Statistics]]

_KEYS_VALUES = "blocks/cross_attention/kv/weight"
_COMPONENTS = ("transformer", "transformer_2")


def channel_absmax(x: Float[Array, "b s k"]) -> Float32[Array, " k"]:
    """The largest magnitude of each channel over batch and tokens.

    >>> channel_absmax(jnp.array([[[1.0, -2.0], [-3.0, 0.5]]])).tolist()
    [3.0, 2.0]
    """
    return jnp.max(jnp.abs(x.astype(jnp.float32)), axis=(0, 1))


def _note_absmax(group: str, x: Float[Array, "b s k"], p: Any) -> Float32[Array, " k"]:
    return channel_absmax(x)


def collect(
    pipe: Any, prompts: Sequence[str], *, report: Callable[[str], None] = lambda prompt: None, **settings: Any
) -> StatisticsByComponent:
    """Run `pipe`, whose weights must be dense, on every prompt. Keyword arguments are those of a call."""
    if pipe.recipe.weights:
        raise UserError(f"calibration runs the dense model; recipe {pipe.recipe.name} is quantized")
    if any(config.image_dim is not None for config in pipe.components.transformer_configs):
        raise UserError("calibration runs from prompts alone; this checkpoint continues an image")
    observing = type(pipe)(pipe.components, pipe.recipe, observe=_note_absmax)
    totals: list[dict[str, np.ndarray]] = [{} for _ in pipe.components.experts]
    for index, prompt in enumerate(prompts):
        report(prompt)
        chosen = observing.settings(prompt=prompt, **settings | {"seed": settings.get("seed", 0) + index})
        for expert, seen in enumerate(_observe(observing, chosen)):
            for path, absmax in seen.items():
                totals[expert][path] = np.maximum(totals[expert].get(path, 0.0), absmax)
    return {name: _statistics(total) for name, total in zip(_COMPONENTS, totals, strict=False) if total}


def save(path: Path, statistics: StatisticsByComponent, facts: Mapping[str, Any]) -> None:
    """Write a .npz file. `facts` say what was run; `load` ignores them, people do not."""
    arrays = {f"{name}/{key}": np.asarray(each.absmax) for name, by in statistics.items() for key, each in by.items()}
    outputs.write_npz(path, arrays | {"facts": np.array(json.dumps(dict(facts)))})


def load(path: Path) -> StatisticsByComponent:
    """Read what `save` wrote."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files if key != "facts"}
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"--statistics {path}: {getattr(error, 'strerror', None) or 'not a .npz file'}") from None
    statistics: StatisticsByComponent = {}
    for key, absmax in arrays.items():
        component, _, name = key.partition("/")
        statistics.setdefault(component, {})[name] = Statistics(jnp.asarray(absmax, jnp.float32))
    if not statistics or not set(statistics) <= set(_COMPONENTS):
        raise UserError(f"--statistics {path}: has none of a transformer; make it with scripts/quantize.py")
    return statistics


def _observe(pipe: Any, settings: Any) -> list[dict[str, np.ndarray]]:
    """One video: per expert, the absmax (l, k) of each weight's input over the steps that ran on it."""
    text, infos = pipe.encode_text(settings), pipe.infos(settings)
    inputs = pipe.observed(settings)["inputs"]  # group -> (i, e, l, k)
    seen = []
    for expert, params in enumerate(pipe.components.experts):
        ran = np.asarray(infos.expert) == expert
        by_path = {GROUP_WEIGHTS[group]: each[ran].max((0, 1)) for group, each in inputs.items() if ran.any()}
        seen.append(by_path | _keys_values(params, text) if by_path else {})
    return seen


def _keys_values(params: Any, text: Float[Array, "e p text"]) -> dict[str, np.ndarray]:
    """Every layer's keys and values are made of the same embedded text."""
    absmax = np.asarray(channel_absmax(wan.embed_text(params, text)))
    layers = params["blocks"]["cross_attention"]["kv"]["bias"].shape[0]
    return {_KEYS_VALUES: np.broadcast_to(absmax, (layers, absmax.size))}


def _statistics(absmax: Mapping[str, np.ndarray]) -> dict[str, Statistics]:
    return {path: Statistics(jnp.asarray(values, jnp.float32)) for path, values in absmax.items()}
