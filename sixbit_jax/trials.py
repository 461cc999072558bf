"""Thresholds found on real runs: of the cache, and of precision beside it.

Each moves what the other is chosen for: the more is rounded, the more deltas change and the less is skipped. So both
searches look at the same runs. All of them are one compiled program, to which thresholds are arguments.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from sixbit_jax import bits_search, tau_search
from sixbit_jax.pipeline import WanPipeline
from sixbit_jax.policies import AbstractPrecisionPolicy, PolicySpec, PredictedPrecision, StepInfo, TemporalDeltaCache
from sixbit_jax.realised import realised
from sixbit_jax.recipes import Recipe
from sixbit_jax.sampler import COMPILER_OPTIONS, Sampler, Trace
from sixbit_jax.settings import Settings
from sixbit_jax.several import one_of_several
from sixbit_jax.shapes import Params

ROUNDS = 12
CLOSE_RATE = 0.03
CLOSE_BITS = 0.05
MOVED = ("tau", "error_threshold")

Policy = TypeVar("Policy")
Thresholds = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Trials:
    """Runs of the model as the recipe quantizes it, from a few prompts, under one policy after another."""

    pipe: WanPipeline
    prompts: Sequence[str]
    settings: dict[str, Any]  # `seed` is the first prompt's
    batch: int = 1  # videos at a time

    @classmethod
    def load(
        cls, model: str, recipe: Recipe, prompts: Sequence[str], settings: dict[str, Any], batch: int = 1
    ) -> "Trials":
        policy = (
            recipe.cache if isinstance(recipe.cache, TemporalDeltaCache) else TemporalDeltaCache(cache_format="int8")
        )
        ready = dataclasses.replace(recipe, cache=dataclasses.replace(policy, tau=0.0))
        return cls(WanPipeline.load(model, ready), prompts, settings, batch)

    def under(self, precision: AbstractPrecisionPolicy) -> "Trials":
        """The same model and prompts."""
        recipe = dataclasses.replace(self.pipe.recipe, precision=precision)
        return dataclasses.replace(self, pipe=WanPipeline(self.pipe.components, recipe))

    def run(
        self, advance: Callable[[int], Any], cache: TemporalDeltaCache, precision: AbstractPrecisionPolicy
    ) -> list[Trace]:
        """One run a prompt."""
        (cache, tau), (precision, threshold) = _apart(cache), _apart(precision)
        recipe = dataclasses.replace(self.pipe.recipe, cache=cache, precision=precision)
        pipe = WanPipeline(self.pipe.components, recipe)
        traces: list[Trace] = []
        for first, texts, noise in self._batches:
            parts, infos = pipe.parts(first), pipe.infos(first)
            some = _traces(parts, (tau, threshold), pipe.components.experts, texts, noise, infos)
            some = jax.tree.map(np.asarray, some)
            traces += [jax.tree.map(lambda leaf, i=i: leaf[i], some) for i in range(len(texts))]
            advance(len(texts))
        return traces

    @functools.cached_property
    def _batches(self) -> list[tuple[Settings, Array, Array]]:
        """The settings of the first, texts and noise: made once, whatever is tried on them."""
        seed = self.settings["seed"]
        chosen = [
            self.pipe.settings(prompt=prompt, **self.settings | {"seed": seed + i})
            for i, prompt in enumerate(self.prompts)
        ]
        batches = [chosen[first : first + self.batch] for first in range(0, len(chosen), self.batch)]
        stacked = lambda make, batch: jnp.stack([make(each) for each in batch])
        return [
            (batch[0], stacked(self.pipe.encode_text, batch), stacked(self.pipe.initial_latents, batch))
            for batch in batches
        ]

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
        tried = precision
        if isinstance(precision, PredictedPrecision):
            tried = dataclasses.replace(precision, error_threshold=widths.threshold)
        return trials.run(advance, dataclasses.replace(trials.cache, tau=tau), tried)

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


def _apart(policy: Policy) -> tuple[Policy, Thresholds]:
    """The policy with thresholds of zero, which is part of the program, and its thresholds, which are not."""
    moved = {name: getattr(policy, name) for name in MOVED if hasattr(policy, name)}
    return _with(policy, dict.fromkeys(moved, 0.0)), moved


def _with(policy: Policy, thresholds: Thresholds) -> Policy:
    return dataclasses.replace(policy, **thresholds)  # type: ignore[type-var]


@functools.partial(jax.jit, static_argnums=0, compiler_options=COMPILER_OPTIONS)
def _traces(
    parts: Sampler,
    thresholds: tuple[Thresholds, Thresholds],
    experts: tuple[Params, ...],
    texts: Float[Array, "n e p text"],
    noise: Float[Array, "n b t h w c"],
    infos: StepInfo,
) -> Trace:
    """Of each prompt, leading with them. One alone is not vmapped: it would run both sides of every conditional."""
    cache, precision = _with(parts.cache, thresholds[0]), _with(parts.precision, thresholds[1])
    parts = dataclasses.replace(parts, cache=cache, precision=precision)
    run = lambda text, noise: one_of_several(parts, experts, infos, text, noise)[1]
    if len(texts) == 1:
        return jax.tree.map(lambda leaf: leaf[None], run(texts[0], noise[0]))
    return jax.vmap(run)(texts, noise)


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
def bar(what: str, total: int) -> Iterator[Callable[..., Any]]:
    with tqdm(total=total, desc=what, unit="run", dynamic_ncols=True, disable=None) as bar:
        yield bar.update
