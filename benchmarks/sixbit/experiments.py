"""The recipes that each experiment sets beside each other, and what they are compared with."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.sixbit.stack_residual import Calibration
from sixbit_jax import presets, recipes
from sixbit_jax.policies import NoCache, PredictedPrecision, RandomPrecision, ScheduledReuse, TemporalDeltaCache
from sixbit_jax.policies.predicted import REFRESHES
from sixbit_jax.policies.skip_schedules import magcache_steps, teacache_steps
from sixbit_jax.policies.temporal_delta import TOGETHER
from sixbit_jax.recipes import Recipe

SEEDS = (0, 1, 2)
TAU_FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.5)
CACHE_FORMATS = ("f32", "bf16", "int8", "nvfp4")
_THRESHOLDS = np.geomspace(1e-3, 10, 400)

# Of the runs of one recipe, the mean of a figure.
Realised = Callable[[Recipe, str], float]


@dataclasses.dataclass(frozen=True)
class Bench:
    """What experiments are made of. `run`: runs recipes that have not run yet. `ran`: a recipe's mean of one figure."""

    model: str
    steps: int
    dtype: str
    run: Callable[[Sequence[Recipe]], None]
    ran: Realised
    schedules: Callable[[], Calibration]

    def get(self, name: str, /, **changes: Any) -> Recipe:
        recipe = dataclasses.replace(recipes.get(name), dtype=self.dtype)
        return dataclasses.replace(presets.complete(recipe, self.model, steps=self.steps)[0], **changes)


def precision(bench: Bench) -> list[Recipe]:
    """Predicted routes beside fixed ones, and beside random ones of the same width, drawn at every step or once."""
    predicted = bench.get("6bit-predictor-only")
    turned = dataclasses.replace(predicted, name="predicted, routes swapped", precision=_swapped(predicted.precision))
    lots = [*_lots(bench, predicted, once=False), *_lots(bench, predicted, once=True)]
    return [bench.get("w4a4"), bench.get("w4a8"), bench.get("w4a16"), predicted, *lots, turned]


def _lots(bench: Bench, predicted: Recipe, *, once: bool) -> list[Recipe]:
    share = (bench.ran(predicted, "activation_bits") - 4) / 4
    # The first step is wide in both. In whole groups: another device's bits differ in their third place.
    groups = np.size(predicted.precision.slope)
    later = round(max(0.0, (share * bench.steps - 1) / (bench.steps - 1)) * groups) / groups
    drawn = "random once" if once else "random"
    return [
        dataclasses.replace(
            predicted, name=f"{drawn}, seed {seed}", precision=RandomPrecision(later, seed, once), cache=NoCache()
        )
        for seed in SEEDS
    ]


def refresh(bench: Bench) -> list[Recipe]:
    """Purified Delta Refresh: never, and in both readings of the paper, at one tau."""
    whole = bench.get("6bit")
    return [
        dataclasses.replace(
            whole, name=f"6bit, purify {when}", precision=dataclasses.replace(whole.precision, purify=when)
        )
        for when in REFRESHES
    ]


def frontier(bench: Bench) -> list[Recipe]:
    """The delta cache on dense weights at six tau, blocks deciding apart and together, and at equal work the steps that
    MagCache and TeaCache skip.
    """
    tau = bench.get("6bit-tdc-only").cache.tau
    dense = bench.get("f32" if bench.dtype == "f32" else "bf16")
    ours = [
        dataclasses.replace(
            dense,
            name=f"delta cache by {together}, tau {factor * tau:.3g}",
            cache=TemporalDeltaCache(tau=factor * tau, together=together),
        )
        for together in TOGETHER
        for factor in TAU_FACTORS
    ]
    bench.run(ours)
    counts = sorted({round(bench.ran(recipe, "skip_rate") * bench.steps) for recipe in ours} - {0})
    known = bench.schedules()
    rivals = []
    for count in counts:
        for name, plan in (("MagCache", _magcache(known)), ("TeaCache", _teacache(known))):
            steps = min(map(plan, _THRESHOLDS), key=lambda steps: abs(len(steps) - count))
            label = f"{name}, {len(steps)} of {bench.steps} steps"
            rivals.append(dataclasses.replace(dense, name=label, cache=ScheduledReuse(steps=steps)))
    return [*ours, *dict.fromkeys(rivals)]


def formats(bench: Bench) -> list[Recipe]:
    """What rounding the kept deltas costs, on dense weights, every third step skipped whatever the format.

    Under a threshold formats skip differently: a delta's change is one from what was kept, rounding included.
    """
    steps = tuple(range(3, bench.steps - 1, 3))
    dense = bench.get("f32" if bench.dtype == "f32" else "bf16")
    return [
        dataclasses.replace(dense, name=f"delta cache in {each}", cache=ScheduledReuse(steps=steps, cache_format=each))
        for each in CACHE_FORMATS
    ]


EXPERIMENTS: dict[str, Callable[[Bench], list[Recipe]]] = {
    "precision": precision,
    "refresh": refresh,
    "frontier": frontier,
    "formats": formats,
}


def _swapped(policy: Any) -> PredictedPrecision:
    """Wide where the predictor says few bits would do: if this is better, the correlation has the wrong sign."""
    negative = lambda table: tuple(tuple(-value for value in row) for row in table)
    return dataclasses.replace(
        policy,
        slope=negative(policy.slope),
        offset=negative(policy.offset),
        error_threshold=-policy.error_threshold,
    )


def _magcache(known: Calibration) -> Callable[[float], Sequence[int]]:
    return lambda threshold: magcache_steps(known.ratios, float(threshold), max_skips=4)


def _teacache(known: Calibration) -> Callable[[float], Sequence[int]]:
    return lambda threshold: teacache_steps(known.changes, known.coefficients, float(threshold))
