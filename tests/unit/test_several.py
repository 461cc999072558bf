"""Several videos at once are the videos one by one."""

import dataclasses

import numpy as np
import pytest
from micro_pipeline import write_micro_pipeline

from sixbit_jax import recipes
from sixbit_jax.errors import UserError
from sixbit_jax.pipeline import WanPipeline
from sixbit_jax.several import several

BY_HAND = {"--tau": 0.7, "--error-threshold": 0.31, "--cache-budget-gb": None}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory) -> WanPipeline:
    recipe = recipes.with_flags(dataclasses.replace(recipes.get("6bit"), dtype="f32"), BY_HAND)
    return WanPipeline.load(write_micro_pipeline(tmp_path_factory.mktemp("model") / "micro"), recipe)


def test_decisions_and_latents_are_those_of_each_video(pipe):
    """Batched products sum in another order, which moves latents in their last bits."""
    prompts = ("a red circle moves left", "a blue square grows")
    chosen = [pipe.settings(prompt=each, seed=seed, num_inference_steps=8) for seed, each in enumerate(prompts)]
    together = several(pipe, chosen)
    for found, settings in zip(together, chosen, strict=True):
        alone = pipe(settings.prompt, seed=settings.seed, num_inference_steps=8)
        np.testing.assert_array_equal(found.trace.route, alone.trace.route)
        np.testing.assert_array_equal(found.trace.skipped, alone.trace.skipped)
        assert np.abs(found.latents - alone.latents).max() <= 1e-4 * np.abs(alone.latents).max()
        assert found.settings == settings
        assert found.video.shape == alone.video.shape
    assert together[0].trace.skipped.any()
    assert (together[0].latents != together[1].latents).any()


def test_what_they_share_has_to_be_the_same(pipe):
    chosen = [pipe.settings(prompt="a red circle", num_inference_steps=steps) for steps in (4, 8)]
    with pytest.raises(UserError, match="prompt and seed only"):
        several(pipe, chosen)
