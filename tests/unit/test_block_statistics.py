"""Block statistics of a micro model: the numbers are those of their definitions, and the report holds them."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from micro_pipeline import MICRO, write_micro_pipeline
from PIL import Image

from sixbit_jax import block_statistics, recipes
from sixbit_jax.block_statistics import BlockStatistics
from sixbit_jax.components import Components
from sixbit_jax.models.wan_config import GROUPS
from sixbit_jax.pipeline import WanPipeline
from sixbit_jax.policies import NoCache
from sixbit_jax.policies.measures import outlier_ratio

PROMPTS = ("a red circle moves left", "a blue star")


@pytest.fixture(scope="module")
def pipe(tmp_path_factory) -> WanPipeline:
    return WanPipeline.load(write_micro_pipeline(tmp_path_factory.mktemp("model") / "micro"), "f32")


@pytest.fixture(scope="module")
def statistics(pipe) -> BlockStatistics:
    return block_statistics.collect(pipe, PROMPTS, num_inference_steps=3)


def test_the_ratio_is_its_definition():
    x = jnp.array([[[1.0, -1.0], [-6.0, 4.0]]])
    assert float(outlier_ratio(x)) == pytest.approx(6 / 3)


def test_relative_change_is_what_sampling_sees(pipe, statistics):
    recipe = recipes.Recipe("measured", dtype="f32", cache=NoCache(measure=True))
    sampled = [WanPipeline(pipe.components, recipe)(prompt, num_inference_steps=3).trace for prompt in PROMPTS]
    gamma = np.mean([trace.observed["gamma"].mean(1) for trace in sampled], axis=0)
    assert gamma.shape == (3, MICRO.transformer.num_layers)
    np.testing.assert_allclose(statistics.gamma, gamma, rtol=1e-4)


def test_ratios_are_of_every_group_step_and_block(statistics):
    assert tuple(statistics.ratio) == GROUPS
    for values in statistics.ratio.values():
        assert values.shape == statistics.gamma.shape
        assert values.min() > 1


def test_the_report_holds_the_numbers(statistics, tmp_path: Path):
    block_statistics.write(tmp_path, statistics, {"model": "micro"})
    data = json.loads((tmp_path / "block-statistics.json").read_text())
    assert data["model"] == "micro"
    np.testing.assert_allclose(data["gamma"], statistics.gamma, rtol=1e-3)
    np.testing.assert_allclose(data["outlier_ratio"]["ffn_in"], statistics.ratio["ffn_in"], rtol=1e-3)
    page = (tmp_path / "block-statistics.md").read_text()
    assert page.count("\n| ") == 2 + MICRO.transformer.num_layers + 1
    with Image.open(tmp_path / "block-statistics.png") as picture:
        assert picture.height > len(GROUPS) * MICRO.transformer.num_layers


def test_the_model_is_left_as_it_was(pipe):
    assert isinstance(pipe.components, Components)
    assert pipe.observe is None
    assert pipe.recipe.cache == NoCache()
