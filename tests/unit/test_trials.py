"""Thresholds that pull at each other: on a made-up model, and on a micro one by the whole command."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from micro_pipeline import write_micro_pipeline

from sixbit_jax import recipes
from sixbit_jax.evaluate.prompts import shown
from sixbit_jax.pipeline import WanPipeline
from sixbit_jax.policies import FixedPrecision, PolicySpec, PredictedPrecision, TemporalDeltaCache
from sixbit_jax.presets import complete
from sixbit_jax.realised import realised
from sixbit_jax.routes import Route
from sixbit_jax.sampler import Trace
from sixbit_jax.tau_search import replay
from sixbit_jax.trials import CLOSE_BITS, CLOSE_RATE, ROUNDS, Trials, _traces, find_thresholds

ROOT = Path(__file__).resolve().parents[2]
SPEC = PolicySpec(8, ("only",), 2, 40, 8, 16, "float32")
DICE = np.random.default_rng(0)
CHANGES = DICE.uniform(0.8, 1.2, (40, 2, 8)) * np.geomspace(0.5, 0.02, 40)[:, None, None]
ERRORS = DICE.lognormal(-2, 0.3, (40, 2, 8, 1))


class MadeUp(Trials):
    """Where less is rounded, less changes and more is skipped; after a skip a block has eight bits."""

    precision: Any = PredictedPrecision(error_threshold=0.1, purify="never")
    spec = SPEC
    cache = TemporalDeltaCache(tau=0.0, together="step")
    prompts = ("one",)

    def __init__(self):
        object.__setattr__(self, "taus", [])

    def run(
        self, advance: Any, cache: TemporalDeltaCache, precision: Any = FixedPrecision(Route("int8"))
    ) -> list[Trace]:
        self.taus.append(cache.tau)
        wide = getattr(precision, "error_threshold", np.inf) < ERRORS
        changes = CHANGES * (1.3 - 0.3 * wide.mean())
        skipped = replay(cache, SPEC, changes)
        after = np.concatenate([np.ones_like(skipped[:1]), skipped[:-1]])
        high = (wide | after[..., None]) & (len(precision.routes) > 1)
        return [Trace(high.astype(int), skipped, {"change": changes})]


@pytest.mark.parametrize(("bits", "skip_rate"), [(6.0, 0.2), (5.0, 0.3), (6.6, 0.1)])
def test_both_are_met(bits, skip_rate):
    trials = MadeUp()
    found = find_thresholds(trials, ERRORS, float(np.median(ERRORS)), bits, skip_rate)
    assert abs(found.bits - bits) <= CLOSE_BITS
    assert abs(found.skip_rate - skip_rate) <= CLOSE_RATE
    assert trials.taus[0] == 0
    assert len(trials.taus) <= ROUNDS + 1


def test_without_a_prediction_only_the_share_is_met():
    trials = MadeUp()
    object.__setattr__(trials, "precision", FixedPrecision(Route("int8")))
    found = find_thresholds(trials, ERRORS, 0.1, 6.0, 0.3)
    assert abs(found.skip_rate - 0.3) <= CLOSE_RATE
    assert found.error_threshold == 0.1
    assert found.bits == pytest.approx(8 * (1 - found.skip_rate))


def test_the_command_writes_what_its_last_run_came_to(tmp_path):
    """The preset completes the recipe, and a run under it has the width and the skipped share that the preset says."""
    model = write_micro_pipeline(tmp_path / "micro")
    command = [sys.executable, ROOT / "scripts" / "calibrate.py", "--model", model, "--steps", "8"]
    command += ["--tiny-world-prompts", "2", "--tau-prompts", "1", "--output", tmp_path / "report"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    recipe, preset = complete(dataclasses.replace(recipes.get("6bit"), dtype="f32"), model, steps=8)
    assert preset is not None
    assert recipe.precision.error_threshold == preset.error_threshold_beside_cache
    assert f"{preset.facts['mean_bits_beside_cache']:.2f}, what" in (tmp_path / "report" / "predictor.md").read_text()
    pipe = WanPipeline.load(model, recipe)
    settings = pipe.settings(prompt=shown(1)[0].text, num_inference_steps=8, seed=0)
    came_to = realised(pipe.traced(settings), recipe.precision.routes)
    assert came_to.mean_bits_with_skipped == pytest.approx(preset.facts["mean_bits_beside_cache"], rel=1e-5)
    assert came_to.skip_rate == pytest.approx(preset.facts["skip_rate"])


def test_thresholds_are_arguments_of_one_program(tmp_path):
    """Whatever they are, and however many videos run at a time, runs decide what the policies themselves decide."""
    model = write_micro_pipeline(tmp_path / "micro")
    precision = PredictedPrecision(error_threshold=0.0)
    recipe = dataclasses.replace(recipes.get("6bit"), dtype="f32", precision=precision)
    settings = {"num_inference_steps": 8, "seed": 3}
    together = Trials.load(str(model), recipe, ["one", "two"], settings, batch=2)
    compiled = _traces._cache_size()
    for tau, threshold in ((0.0, 0.1), (1.0, 0.3), (2.0, 0.2)):
        policies = {
            "cache": dataclasses.replace(together.cache, tau=tau),
            "precision": dataclasses.replace(precision, error_threshold=threshold),
        }
        itself = WanPipeline(together.pipe.components, dataclasses.replace(together.pipe.recipe, **policies))
        for index, trace in enumerate(together.run(lambda _: None, **policies)):
            prompt = together.prompts[index]
            expected = itself.traced(itself.settings(prompt=prompt, num_inference_steps=8, seed=3 + index))
            np.testing.assert_array_equal(trace.skipped, expected.skipped)
            np.testing.assert_array_equal(trace.route, expected.route)
            # Sums in another order let a four-bit code tip: of 32 channels of one of 8 tokens, a step of up to a third
            # of its value is 1/3 / sqrt(32) / 8. One in the last bit of the noise moves changes by 0.4 %.
            np.testing.assert_allclose(trace.change, expected.change, rtol=0.01)
        assert trace.skipped.any() == (tau > 0)
    assert _traces._cache_size() == compiled + 1
