"""Prompt to frames against diffusers.WanPipeline: same folder, same initial latents, prompt, negative prompt and
guidance, f32.

Error model: each model call differs by a few 1e-6 of its scale. Guidance multiplies the difference of the branches by
its scale, and errors of earlier steps travel along, so a few steps stay near 1e-5; the bounds of 1e-3 on latents and
2/255 on frames are the project's.
"""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline

from converters.random_pipeline import write_random_pipeline
from sixbit_jax import WanPipeline as OurPipeline

pytestmark = pytest.mark.parity

SIZE = {"height": 32, "width": 48, "num_frames": 9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_random_pipeline(folder, "tiny", seed=3)
    return folder


@pytest.fixture(scope="module")
def pipelines(folder):
    theirs = WanPipeline.from_pretrained(folder, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    return OurPipeline.load(folder, "f32"), theirs


def run_both(pipelines, *, steps, guidance, shift, solver, prompt="a red  circle &amp; a square", negative="blurry"):
    ours, theirs = pipelines
    latents = np.random.default_rng(0).standard_normal((1, 16, 3, 4, 6)).astype(np.float32)
    kind = UniPCMultistepScheduler if solver == "unipc" else FlowMatchEulerDiscreteScheduler
    options = {"flow_shift": shift, "prediction_type": "flow_prediction", "use_flow_sigmas": True}
    theirs.scheduler = kind(**options) if solver == "unipc" else kind(shift=shift)
    shared = {"num_inference_steps": steps, "guidance_scale": guidance, "negative_prompt": negative, **SIZE}
    call = lambda output: theirs(
        prompt, latents=torch.from_numpy(latents), output_type=output, return_dict=False, **shared
    )[0]
    return ours(prompt, latents=latents, flow_shift=shift, solver=solver, **shared), call("latent"), call("np")[0]


@pytest.mark.parametrize(
    ("steps", "guidance", "shift", "solver"),
    [(4, 5.0, 3.0, "unipc"), (3, 1.0, 8.0, "unipc"), (3, 2.0, 5.0, "euler"), (1, 4.0, 3.0, "unipc")],
)
def test_same_video(pipelines, steps, guidance, shift, solver):
    result, latents, frames = run_both(pipelines, steps=steps, guidance=guidance, shift=shift, solver=solver)
    latents = latents.numpy()
    assert result.latents.shape == latents.shape
    assert np.abs(result.latents - latents).max() <= 1e-3 * np.abs(latents).max()
    assert np.abs(result.video / 255.0 - frames).max() <= 2 / 255
    assert frames.std() > 0.05, "a constant video would prove nothing"


def test_the_prompt_matters(pipelines):
    """Guards the test above: another prompt changes the latents by far more than its bound."""
    first, _, _ = run_both(pipelines, steps=2, guidance=5.0, shift=3.0, solver="unipc")
    second, _, _ = run_both(pipelines, steps=2, guidance=5.0, shift=3.0, solver="unipc", prompt="two blue stars")
    assert np.abs(first.latents - second.latents).max() > 1e-2 * np.abs(first.latents).max()


def test_two_experts(folder, tmp_path):
    """Wan2.2 A14B's shape: `transformer` above the boundary, `transformer_2` below, guidance scales of their own."""
    other = tmp_path / "other"
    write_random_pipeline(other, "tiny", seed=4)
    theirs = WanPipeline.from_pretrained(
        folder,
        transformer_2=WanPipeline.from_pretrained(other, dtype=torch.float32).transformer,
        boundary_ratio=0.875,
        dtype=torch.float32,
    )
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = UniPCMultistepScheduler(flow_shift=5.0, prediction_type="flow_prediction", use_flow_sigmas=True)
    theirs.save_pretrained(tmp_path / "a14b")
    ours = OurPipeline.load(tmp_path / "a14b", "f32")
    latents = np.random.default_rng(0).standard_normal((1, 16, 3, 4, 6)).astype(np.float32)
    shared = {"num_inference_steps": 4, "guidance_scale": 4.0, "guidance_scale_2": 2.0, "negative_prompt": "", **SIZE}
    expected = theirs("a star", latents=torch.from_numpy(latents), output_type="latent", return_dict=False, **shared)[
        0
    ].numpy()
    result = ours("a star", latents=latents, flow_shift=5.0, **shared)
    assert 0 < int(ours.infos(result.settings).expert.sum()) < 4
    assert np.abs(result.latents - expected).max() <= 1e-3 * np.abs(expected).max()


def test_same_seed_same_video(pipelines):
    ours, _ = pipelines
    settings = {"num_inference_steps": 2, "seed": 5, **SIZE}
    first, second = ours("a star", **settings), ours("a star", **settings)
    np.testing.assert_array_equal(first.latents, second.latents)
    np.testing.assert_array_equal(first.video, second.video)
