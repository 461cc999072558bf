"""Thresholds found on real runs: of the cache, and of precision beside it.

Each moves what the other is chosen for: the more is rounded, the more deltas change and the less is skipped. So both
searches look at the same runs.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from sixbit_jax import bits_search, tau_search
from sixbit_jax.pipeline import WanPipeline
from sixbit_jax.policies import AbstractPrecisionPolicy, PolicySpec, PredictedPrecision, TemporalDeltaCache
from sixbit_jax.realised import realised
from sixbit_jax.recipes import Recipe
from sixbit_jax.sampler import Trace

ROUNDS = 12
CLOSE_RATE = 0.03
CLOSE_BITS = 0.05


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

    def under(self, precision: AbstractPrecisionPolicy) -> "Trials":
        """The same model and prompts."""
        recipe = dataclasses.replace(self.pipe.recipe, precision=precision)
        return dataclasses.replace(self, pipe=WanPipeline(self.pipe.components, recipe))

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
    def spec(self) -> PolicySpec:
        return self.pipe.parts(self.pipe.settings(**self.settings)).spec

    @property
    def precision(self) -> AbstractPrecisionPolicy:
        return self.pipe.recipe.precision

    @property
    def cache(self) -> TemporalDeltaCache:
        assert isinstance(self.pipe.recipe.cache, TemporalDeltaCache)
        return self.pipe.recipe.cache


@dataclasses.dataclass(frozen=True)
class Found:
    """Thresholds, and what the runs at them came to. Skipped work counts as no bits, as in the paper's main table."""

    error_threshold: float
    tau: float
    bits: float
    skip_rate: float
    order: tuple[int, ...]  # of the layers: those that skipped most first


def find_thresholds(trials: Trials, predicted: np.ndarray, alone: float, bits: float, skip_rate: float) -> Found:
    """Those that came closest to skipping that share of the blocks and to that width.

    `alone`: the threshold of precision without a cache. `predicted`: errors, as `ThresholdSearch` takes them. A recipe
    that does not predict has its own width.
    """
    precision, predicts = trials.precision, isinstance(trials.precision, PredictedPrecision)
    spread = float(precision.routes[1].bits - precision.routes[0].bits) if predicts else 1.0
    widths = bits_search.ThresholdSearch(predicted, alone, spread)
    distance = functools.partial(_distance, bits=bits if predicts else None, skip_rate=skip_rate)
    tried: list[Found] = []

    def run(tau: float) -> list[Trace]:
        policies: dict[str, Any] = {"cache": dataclasses.replace(trials.cache, tau=tau)}
        if predicts:
            policies["precision"] = dataclasses.replace(precision, error_threshold=widths.threshold)  # type: ignore[type-var]
        return trials.run(advance, **policies)

    with bar("thresholds", (ROUNDS + 1) * len(trials.prompts)) as advance:
        changes = np.concatenate([np.asarray(trace.change) for trace in run(0.0)], 1)  # side by side, as branches
        taus = tau_search.TauSearch(trials.cache, trials.spec, changes, skip_rate)
        for _ in range(ROUNDS):
            traces = run(taus.tau)
            tried.append(_found(traces, precision, widths.threshold, taus.tau))
            if distance(tried[-1]) <= 1:
                break
            came_to = tried[-1].skip_rate
            if abs(came_to - skip_rate) > CLOSE_RATE:
                taus.tell(came_to)
            else:  # in widths of what ran, which hang less on how much was skipped
                widths.tell(tried[-1].bits / (1 - came_to), bits / (1 - came_to))
                taus.forget()
    return min(tried, key=distance)


def _found(traces: Sequence[Trace], precision: AbstractPrecisionPolicy, threshold: float, tau: float) -> Found:
    came_to = [realised(trace, precision.routes) for trace in traces]
    skipped = np.concatenate([np.asarray(trace.skipped) for trace in traces], 1)
    bits = float(np.mean([each.mean_bits_with_skipped for each in came_to]))
    return Found(threshold, tau, bits, float(skipped.mean()), tau_search.order(skipped))


def _distance(found: Found, bits: float | None, skip_rate: float) -> float:
    """In what is close enough."""
    off = [abs(found.skip_rate - skip_rate) / CLOSE_RATE]
    return max(off if bits is None else [*off, abs(found.bits - bits) / CLOSE_BITS])


@contextlib.contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[], Any]]:
    with tqdm(total=total, desc=what, unit="run", dynamic_ncols=True, disable=None) as bar:
        yield bar.update
