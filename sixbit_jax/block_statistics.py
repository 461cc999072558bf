"""What the blocks of a model do at every step: how much each changes its input, how uneven the inputs of linears are.

    pipeline, prompts --collect--> BlockStatistics --write--> block-statistics.json, .md, .png

Both decide what low precision may do: the relative change predicts the error of a block in few bits, the outlier ratio
tells where a scale is spent on a few loud channels.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from sixbit_jax.models.wan_config import GROUPS
from sixbit_jax.outputs import write_json, write_text
from sixbit_jax.policies import NoCache
from sixbit_jax.policies.measures import note_outlier_ratio


@dataclasses.dataclass(frozen=True)
class BlockStatistics:
    """Means over prompts and guidance branches.

    `gamma[i, l]`: relative change ‖Y − X‖₁ / ‖X‖₁ of block l at step i. `ratio[group][i, l]`: max |X| / mean |X| of the
    group's input.
    """

    gamma: Float[np.ndarray, "i l"]
    ratio: dict[str, Float[np.ndarray, "i l"]]


def collect(
    pipe: Any, prompts: Sequence[str], *, report: Callable[[str], None] = lambda prompt: None, **settings: Any
) -> BlockStatistics:
    """Run `pipe` without a cache on every prompt. Keyword arguments are those of a call."""
    recipe = dataclasses.replace(pipe.recipe, cache=NoCache(measure=True))
    observing = type(pipe)(pipe.components, recipe, observe=note_outlier_ratio)
    seen = []
    for prompt in prompts:
        report(prompt)
        seen.append(_observe(observing, observing.settings(prompt=prompt, **settings)))
    mean = jax.tree.map(lambda *each: np.mean(each, axis=0), *seen)
    return BlockStatistics(mean["gamma"], {group: mean["inputs"][group] for group in GROUPS})


def write(folder: Path, statistics: BlockStatistics, facts: dict[str, Any]) -> None:
    """The three files; `facts` say what was run."""
    from sixbit_jax.heat_maps import write_heat_maps

    numbers = {"gamma": _rounded(statistics.gamma)}
    ratios = {group: _rounded(values) for group, values in statistics.ratio.items()}
    write_json(folder / "block-statistics.json", facts | numbers | {"outlier_ratio": ratios})
    write_text(folder / "block-statistics.md", to_markdown(statistics, facts))
    maps = {"relative change": statistics.gamma} | {
        f"max / mean, {g}": values for g, values in statistics.ratio.items()
    }
    write_heat_maps(folder / "block-statistics.png", maps)


def to_markdown(statistics: BlockStatistics, facts: dict[str, Any]) -> str:
    """A row a block: means over the steps. The last row is the largest of any block and step."""
    head = ["block", "relative change: first step", "middle", "last", *(f"max/mean {group}" for group in GROUPS)]
    middle = len(statistics.gamma) // 2
    rows = [
        [str(layer), *(f"{statistics.gamma[step, layer]:.3f}" for step in (0, middle, -1))]
        + [f"{statistics.ratio[group][:, layer].mean():.1f}" for group in GROUPS]
        for layer in range(statistics.gamma.shape[1])
    ]
    largest = ["largest", *(f"{statistics.gamma[step].max():.3f}" for step in (0, middle, -1))]
    rows.append([*largest, *(f"{statistics.ratio[group].max():.1f}" for group in GROUPS)])
    lines = [head, ["---"] * len(head), *rows]
    told = ", ".join(f"{name} {value}" for name, value in facts.items())
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"# Block statistics\n\n{told}\n\n{table}\n"


def _observe(pipe: Any, settings: Any) -> dict[str, Any]:
    """One video: arrays (i, l), the guidance branches averaged."""
    return jax.tree.map(lambda values: values.mean(1), pipe.observed(settings))


def _rounded(values: Float[np.ndarray, "i l"]) -> list[list[float]]:
    return [[float(f"{value:.4g}") for value in row] for row in values]
