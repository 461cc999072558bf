"""Calibration of the predictor on a micro model: samples are those of their definition, the report holds the fit."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from micro_pipeline import MICRO, write_micro_pipeline

from sixbit_jax import predictor, recipes, route_errors
from sixbit_jax.calibrating import low_route_error, make_preset, write_report
from sixbit_jax.errors import UserError
from sixbit_jax.models.wan_config import GROUPS
from sixbit_jax.pipeline import WanPipeline
from sixbit_jax.presets import read_preset, write_preset
from sixbit_jax.quantizers import MinMax
from sixbit_jax.recipes import Recipe
from sixbit_jax.route_errors import RouteError, Samples
from sixbit_jax.routes import Route
from sixbit_jax.trials import Found

STEPS = 4


@pytest.fixture(scope="module")
def pipe(tmp_path_factory) -> WanPipeline:
    folder = write_micro_pipeline(tmp_path_factory.mktemp("model") / "micro")
    return WanPipeline.load(folder, Recipe("dense", dtype="f32"))


@pytest.fixture(scope="module")
def samples(pipe) -> Samples:
    observer = RouteError(MinMax("nvfp4"), Route("nvfp4"), rows=4)
    return route_errors.collect(pipe, ["a red circle", "a blue star"], observer, num_inference_steps=STEPS)


def test_samples_have_a_number_for_every_prompt_step_branch_layer_and_group(samples):
    layers = MICRO.transformer.num_layers
    assert samples.gamma.shape == (2, STEPS, 2, layers)
    assert samples.error.shape == (2, STEPS, 2, layers, len(GROUPS))


def test_errors_are_those_of_four_bits_on_both_sides(samples):
    """Rounding to E2M1 costs a Gaussian 9 to 10 % on each side, so about 13 % in the product."""
    assert 0.08 < np.median(samples.error) < 0.2
    assert samples.error.min() > 0.02


def test_more_bits_cost_less(rng: np.random.Generator):
    x = jnp.asarray(rng.normal(size=(1, 32, 64)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(48, 64)), jnp.float32)
    costs = [
        float(
            jax.jit(RouteError(MinMax(name), Route(act)), static_argnums=0)(
                "any", x, {"weight": w, "rough": MinMax(name)(w)}
            )
        )
        for name, act in (("nvfp4", "nvfp4"), ("nvfp4", "int8"), ("int8", "int8"))
    ]
    assert costs[0] > 1.2 * costs[1] > 4 * costs[2]


def test_the_videos_stay_dense(pipe, samples):
    """Γ of the calibration is that of plain sampling: the observer changes nothing."""
    again = route_errors.collect(
        pipe, ["a red circle"], RouteError(MinMax("int8"), Route("int8"), rows=2), num_inference_steps=STEPS
    )
    np.testing.assert_allclose(again.gamma[0], samples.gamma[0], rtol=1e-4)


def test_the_report_and_the_preset_hold_the_fit(pipe, samples, tmp_path: Path):
    fitted = predictor.fit(samples.gamma, samples.error)
    threshold = predictor.choose_threshold(fitted, samples.gamma, 6.0)
    bits = predictor.mean_bits(fitted.policy(threshold), fitted, samples.gamma)
    assert abs(bits - 6.0) < 0.1
    facts = {"recipe": "6bit", "prompts": 2, "mean_bits": bits, "mean_bits_beside_cache": 6.0, "skip_rate": 0.5}
    facts |= {"error": "linear", "sensitivity": None}
    found = Found(error_threshold=0.3, tau=0.2, bits=6.0, skip_rate=0.5, order=(1, 0))
    preset = make_preset(pipe.components.source, recipes.get("6bit"), fitted, threshold, found, STEPS, facts)
    write_preset(tmp_path / "preset.json", preset)
    assert read_preset(tmp_path / "preset.json") == preset
    np.testing.assert_allclose(preset.slope, fitted.slope, rtol=1e-5)
    assert (preset.order, preset.tau, preset.low) == ((1, 0), 0.2, "nvfp4")
    assert (preset.error_threshold, preset.error_threshold_beside_cache) == (threshold, 0.3)
    write_report(tmp_path, samples, fitted, preset)
    text = (tmp_path / "predictor.md").read_text()
    assert all(f"| {group} |" in text for group in GROUPS)
    assert (tmp_path / "predictor.png").stat().st_size > 2000


@pytest.mark.parametrize("name", ["bf16", "w4a16"])
def test_a_recipe_without_an_error_to_predict_is_refused(name: str):
    with pytest.raises(UserError, match="a format for activations"):
        low_route_error(recipes.get(name))


def test_a_quantized_model_is_refused(pipe):
    quantized = WanPipeline(pipe.components, recipes.get("w4a8"))
    with pytest.raises(UserError, match="runs the dense model"):
        route_errors.collect(quantized, ["a"], low_route_error(recipes.get("w4a4")))
