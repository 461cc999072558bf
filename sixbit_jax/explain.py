"""What a loaded model will multiply with: for every linear the stored format, the activations' and the implementation.

print(WanPipeline.load("assets/tiny-wan", "w4a8").explain())
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sixbit_jax.attention import explain as explain_attention_choice
from sixbit_jax.dispatch import Choice
from sixbit_jax.linear import explain as explain_linear
from sixbit_jax.linear import spec
from sixbit_jax.models.wan_config import GROUP_WEIGHTS, TEXT_TOKENS, WanConfig
from sixbit_jax.quantize import linear_weights
from sixbit_jax.recipes import DTYPES
from sixbit_jax.routes import Route
from sixbit_jax.shapes import Params


@dataclasses.dataclass(frozen=True)
class Line:
    """One linear under one route. `stored`: format and sizes; `choice`: the implementation, and why not the others."""

    path: str
    stored: str
    act: str | None
    choice: Choice

    def __str__(self) -> str:
        act = self.act or "as they come"
        return f"{self.path}: {self.stored}, activations {act}: {self.choice}"


def explain_components(
    components: Any,
    routes: Sequence[Route],
    tokens: int,
    branches: int,
    attention: str | Sequence[str] | None = None,
) -> str:
    """A line for every linear of the transformer, route by route, its attention, and the linears of the text encoder.

    The text encoder has no routes.
    """
    dtype = DTYPES[components.dtype]
    lines = explain_linears(components.experts[0], routes, tokens, dtype)
    text = explain_linears(components.text_params, (Route(),), branches * TEXT_TOKENS, dtype)
    attended = explain_attention(components.transformer_configs[0], tokens, dtype, attention)
    seen = [f"transformer/{line}" for line in [*lines, *attended]]
    return "\n".join(seen + [f"text_encoder/{line}" for line in text])


def explain_attention(
    config: WanConfig, tokens: int, dtype: Any, implementation: str | Sequence[str] | None
) -> list[str]:
    """What runs the two attentions of a block."""
    q = jax.ShapeDtypeStruct((1, tokens, config.num_heads, config.head_dim), dtype)
    prompt = jax.ShapeDtypeStruct((1, TEXT_TOKENS, config.num_heads, config.head_dim), dtype)
    keys = {"blocks/self_attention": q, "blocks/cross_attention": prompt}
    return [
        f"{path}: {tokens} x {k.shape[1]} tokens, {config.num_heads} heads: "
        f"{explain_attention_choice(q, k, implementation=implementation)}"
        for path, k in keys.items()
    ]


def explain_linears(params: Params, routes: Sequence[Route], tokens: int, dtype: Any) -> list[Line]:
    """The lines of one model. Routes are for the linears of a block that see the video; others run as they are."""
    lines = []
    for path, weight in linear_weights(params).items():
        for route in routes if path in GROUP_WEIGHTS.values() else (Route(),):
            lines.append(_line(path, weight, route, tokens, dtype))
    return lines


def _line(path: str, weight: Any, route: Route, tokens: int, dtype: Any) -> Line:
    layer = jax.eval_shape(lambda w: w if w.ndim == 2 else jax.tree.map(lambda leaf: leaf[0], w), weight)
    dense = isinstance(layer, jax.ShapeDtypeStruct)
    act = None if dense else route.act
    x = jax.ShapeDtypeStruct((tokens, layer.shape[-1]), layer.dtype if dense else dtype)
    facts = spec(x, layer, act=act)
    stack = "" if weight.ndim == 2 else f"{int(np.prod(weight.shape[:-2]))} of "
    parts = {
        "smoothed": facts.smooth,
        f"rotated by {facts.rotated}": facts.rotated,
        "with offsets": facts.zero_groups,
        f"with a branch of rank {facts.rank}": facts.rank,
        f"scales per {facts.act_group} of the activations": facts.act_group,
    }
    stored = ", ".join([f"{stack}({facts.n}, {facts.k}) {facts.w}", *(name for name, there in parts.items() if there)])
    if route.implementation is None or dense:
        return Line(path, stored, act, explain_linear(x, layer, act=act))
    return Line(path, stored, act, Choice(route.implementation, ()))
