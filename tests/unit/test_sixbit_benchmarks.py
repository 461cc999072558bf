"""The measuring programs run, at sizes where their figures say nothing, and the rivals' schedules are their papers'."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from micro_pipeline import write_micro_pipeline

from benchmarks.policies import forward_times, skip_times
from benchmarks.sixbit.experiments import EXPERIMENTS, Bench
from benchmarks.sixbit.stack_residual import Calibration, calibrate
from sixbit_jax import checkpoint, presets, recipes
from sixbit_jax.components import locate
from sixbit_jax.models.wan_config import GROUPS
from sixbit_jax.pipeline import WanPipeline
from sixbit_jax.policies import ScheduledReuse
from sixbit_jax.policies.skip_schedules import magcache_steps, teacache_steps
from sixbit_jax.presets import Preset
from sixbit_jax.presets.preset import stored_weights

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Calibrated by hand: tables that tell layers and groups apart."""
    folder = write_micro_pipeline(tmp_path_factory.mktemp("model") / "micro")
    contents = checkpoint.read_manifest(locate(folder, "f32")).contents
    table = tuple(tuple(0.1 * (layer + group) for group in range(len(GROUPS))) for layer in range(2))
    preset = Preset(
        "micro", contents, stored_weights(recipes.get("6bit")), "nvfp4", 6, table, table, 0.5, 0.5, 1.2, (0, 1), {}
    )
    presets.write_preset(presets.home(folder, "f32") / "6bit.json", preset)
    return folder


def test_the_costs_of_policies_can_be_measured_anywhere():
    """All routes INT8 give the velocity of INT8 alone; on a CPU the times are not looked at."""
    assert forward_times("micro", "bf16")["forward_difference"] <= 1e-2
    assert skip_times("micro", "int8")["skip_ratio"] > 0


def test_an_experiment_is_run_once_and_written_down(model, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    command = [sys.executable, str(ROOT / "benchmarks" / "sixbit" / "run.py"), "--model", str(model), "--steps", "6"]
    command += ["--prompts", str(tmp_path / "prompts.txt"), "--output", str(tmp_path / "out")]
    done = subprocess.run([*command, "--experiments", "formats"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "formats.json").read_text())
    assert [each["recipe"].split()[-1] for each in found["recipes"]] == ["f32", "bf16", "int8", "nvfp4"]
    assert all(each["means"]["skip_rate"] > 0 for each in found["recipes"])
    lines = (tmp_path / "out" / "runs.jsonl").read_text()
    assert len(lines.splitlines()) == 5
    again = subprocess.run([*command, "--experiments", "formats"], capture_output=True, text=True, timeout=300)
    assert (tmp_path / "out" / "runs.jsonl").read_text() == lines, "nothing is made twice"
    assert "python benchmarks/sixbit/run.py" in again.stdout


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_recipes_that_differ(model, name):
    """Put together without running any: every one has its own name, and a JSON form, which is its key."""
    known = Calibration(np.linspace(1.0, 0.8, 20), np.geomspace(0.3, 0.01, 20), np.array([1.0, 0.0]))
    figure = lambda recipe, name: {"activation_bits": 6.0}.get(name, 0.3)
    bench = Bench(str(model), 20, "f32", lambda recipes: None, figure, lambda: known)
    found = EXPERIMENTS[name](bench)
    assert len({recipe.name for recipe in found}) == len(found) >= 3
    for recipe in found:
        assert recipes.from_json(recipes.to_json(recipe)) == recipe
        assert not [*recipe.precision.missing, *recipe.cache.missing]
    if name == "precision":
        shares = {recipe.precision.high_share for recipe in found if recipe.name.startswith("random")}
        assert shares == {round((0.5 * 20 - 1) / 19 * 12) / 12}
    if name == "frontier":
        skipped = [len(recipe.cache.steps) for recipe in found if isinstance(recipe.cache, ScheduledReuse)]
        assert all(abs(count - 6) <= 1 for count in skipped)
        assert len(skipped) == 2


def test_rivals_are_calibrated_on_the_stack(model):
    """Ratios and changes of the residual, from one run; the polynomial goes through the middle of the changes."""
    pipe = WanPipeline.load(model, "f32")
    settings = pipe.settings(prompt="a red circle", num_inference_steps=6)
    known = calibrate(pipe, settings)
    assert known.ratios.shape == known.changes.shape == (6,)
    assert (known.changes[1:] > 0).all()
    assert ((known.ratios[1:] > 0.3) & (known.ratios[1:] < 3)).all()
    fitted = np.polyval(known.coefficients, known.changes[1:])
    assert np.isfinite(fitted).all()
    jax.clear_caches()


@pytest.mark.parametrize(
    "plan",
    [
        lambda threshold: magcache_steps(np.linspace(1.0, 0.86, 50), threshold),
        lambda threshold: teacache_steps(np.full(50, 0.02), np.array([1.0, 0.0]), threshold),
    ],
    ids=["magcache", "teacache"],
)
def test_schedules_skip_more_as_the_threshold_grows(plan):
    counts = [len(plan(threshold)) for threshold in (0.0, 0.01, 0.05, 0.1, 1.0)]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[-1] > 20
