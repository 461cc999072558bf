"""Metrics against their definitions, written out."""

import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.evaluate.metrics import pairwise_distance, psnr, relative_error, ssim


@pytest.fixture
def pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    reference = rng.integers(0, 256, (2, 16, 18, 3), dtype=np.uint8)
    noise = rng.integers(-20, 21, reference.shape)
    return np.clip(reference + noise, 0, 255).astype(np.uint8), reference


def ssim_by_loops(x: np.ndarray, y: np.ndarray) -> float:
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for frame, channel in np.ndindex(x.shape[0], 3):
        for row, column in np.ndindex(x.shape[1] - 10, x.shape[2] - 10):
            a, b = (v[frame, row : row + 11, column : column + 11, channel] / 255 for v in (x, y))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            variances = (window * (a - mean_a) ** 2).sum() + (window * (b - mean_b) ** 2).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            likeness = (2 * mean_a * mean_b + 0.01**2) * (2 * covariance + 0.03**2)
            values.append(likeness / ((mean_a**2 + mean_b**2 + 0.01**2) * (variances + 0.03**2)))
    return float(np.mean(values))


def test_psnr_of_a_constant_error():
    reference = np.full((1, 4, 4, 3), 100, np.uint8)
    assert psnr(reference + np.uint8(51), reference) == pytest.approx(20 * np.log10(5))  # 51 is a fifth of 255


def test_equal_videos(pair):
    _, reference = pair
    assert psnr(reference, reference) == float("inf")
    assert ssim(reference, reference) == pytest.approx(1)


def test_ssim_is_its_definition(pair):
    assert ssim(*pair) == pytest.approx(ssim_by_loops(*pair), abs=1e-6)  # f32 inputs in [0, 1]
    assert 0.5 < ssim(*pair) < 0.999


def test_both_forms_of_a_video_agree(pair):
    video, reference = pair
    numbers = jnp.asarray(video.astype(np.float32) / 127.5 - 1)
    assert psnr(numbers, reference) == pytest.approx(psnr(video, reference), rel=1e-5)
    assert ssim(numbers, reference) == pytest.approx(ssim(video, reference), rel=1e-5)


def test_relative_error(rng: np.random.Generator):
    reference = rng.normal(size=(1, 2, 3, 4, 16)).astype(np.float32)
    assert relative_error(reference * np.float32(1.25), reference) == pytest.approx(0.25, rel=1e-6)
    assert relative_error(jnp.asarray(reference), reference) == 0


def test_pairwise_distance_is_zero_only_for_copies(pair):
    video, reference = pair
    black, white = np.zeros_like(video), np.full_like(video, 255)
    assert pairwise_distance([video, video, video]) == 0
    assert pairwise_distance([black, white]) == pytest.approx(1)
    assert pairwise_distance([black, white, white]) == pytest.approx(2 / 3)
    assert 0 < pairwise_distance([video, reference]) < 0.1
