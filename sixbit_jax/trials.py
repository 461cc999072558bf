"""Thresholds found on real runs: of the cache, and of precision beside it.

Each moves what the other is chosen for: the more is rounded, the more deltas change and the less is skipped. So both
are chosen twice, in turns.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from sixbit_jax import bits_search, tau_search
from sixbit_jax.pipeline import WanPipeline
from sixbit_jax.policies import PredictedPrecision, TemporalDeltaCache
from sixbit_jax.realised import realised
from sixbit_jax.recipes import Recipe
from sixbit_jax.sampler import Trace

PASSES = 2


@dataclasses.dataclass(frozen=True)
class Trials:
    """Runs of the model as the recipe quantizes it, from a few prompts, under one policy after another."""

    pipe: WanPipeline
    prompts: Sequence[str]
    settings: dict[str, Any]  # `seed` is the first prompt's

    @classmethod
    def load(cls, model: str, recipe: Recipe, prompts: Sequence[str], settings: dict[str, Any]) -> "Trials":
        policy = (
            recipe.cache if isinstance(recipe.cache, TemporalDeltaCache) else TemporalDeltaCache(cache_format="int8")
        )
        ready = dataclasses.replace(recipe, cache=dataclasses.replace(policy, tau=0.0))
        return cls(WanPipeline.load(model, ready), prompts, settings)

    def run(self, advance: Callable[[], Any], **policies: Any) -> list[Trace]:
        """One run a prompt."""
        trial = WanPipeline(self.pipe.components, dataclasses.replace(self.pipe.recipe, **policies))
        traces = []
        for index, prompt in enumerate(self.prompts):
            chosen = trial.settings(prompt=prompt, **self.settings | {"seed": self.settings["seed"] + index})
            traces.append(trial.traced(chosen))
            advance()
        return traces

    @property
    def cache(self) -> TemporalDeltaCache:
        assert isinstance(self.pipe.recipe.cache, TemporalDeltaCache)
        return self.pipe.recipe.cache


def find_thresholds(
    trials: Trials, predicted: np.ndarray, alone: float, bits: float, skip_rate: float
) -> tuple[tau_search.Found, bits_search.Width]:
    """Of the cache, for that share of skipped blocks, and of precision beside it, for that width.

    `alone`: the threshold of precision without a cache. `predicted`: errors, as `bits_search` takes them.
    """
    width = bits_search.Width(alone, bits)
    for _ in range(PASSES):
        found = find_tau(trials, width.error_threshold, skip_rate)
        width = find_width(trials, found.tau, predicted, width.error_threshold, bits)
    return found, width


def find_tau(trials: Trials, threshold: float, target: float) -> tau_search.Found:
    """The threshold of the cache. Prompts run one after the other, their traces side by side as more branches."""
    precision = trials.pipe.recipe.precision
    if isinstance(precision, PredictedPrecision):
        precision = dataclasses.replace(precision, error_threshold=threshold)

    def run(policy: TemporalDeltaCache) -> tuple[np.ndarray, np.ndarray]:
        traces = trials.run(advance, cache=policy, precision=precision)
        changes = [np.asarray(trace.change) for trace in traces]
        return np.concatenate(changes, 1), np.concatenate([np.asarray(trace.skipped) for trace in traces], 1)

    with bar("tau", (tau_search.ROUNDS + 1) * len(trials.prompts)) as advance:
        spec = trials.pipe.parts(trials.pipe.settings(**trials.settings)).spec
        return tau_search.find_tau(trials.cache, spec, target, run)


def find_width(trials: Trials, tau: float, predicted: np.ndarray, alone: float, target: float) -> bits_search.Width:
    """The threshold of precision beside the cache: the one without it where nothing is predicted.

    Skipped work counts as no bits, as in the paper's main table.
    """
    precision, cache = trials.pipe.recipe.precision, dataclasses.replace(trials.cache, tau=tau)

    if not isinstance(precision, PredictedPrecision):
        return bits_search.Width(alone, precision.routes[0].bits)

    def run(threshold: float) -> float:
        policy = dataclasses.replace(precision, error_threshold=threshold)
        traces = trials.run(advance, cache=cache, precision=policy)
        return float(np.mean([realised(trace, policy.routes).mean_bits_with_skipped for trace in traces]))

    with bar("width", bits_search.ROUNDS * len(trials.prompts)) as advance:
        return bits_search.find_threshold(
            predicted, alone, target, float(precision.high.bits - precision.low.bits), run
        )


@contextlib.contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[], Any]]:
    with tqdm(total=total, desc=what, unit="run", dynamic_ncols=True, disable=None) as bar:
        yield bar.update
