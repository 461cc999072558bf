"""The VAE against diffusers' `AutoencoderKLWan`: encode and decode, in pieces, whole and in tiles.

Bound: 1e-4 of the output's scale. Both sides round to f32 after sums of at most 27·64 products, worth about
sqrt(1728) · 6e-8 = 2.5e-6 of their size; some 40 such layers, with a norm in between, add to 2e-5.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
import pytest
import vae_reference

from sixbit_jax.models import vae
from sixbit_jax.shapes import Params

pytestmark = pytest.mark.parity

BOUND = 1e-4
# Configuration, batch, frames, height and width, latent frames a chunk (the last chunk of three is shorter).
CASES = [
    ("as released", 2, 1, (24, 40), 1),
    ("as released", 1, 13, (40, 24), 2),
    ("four latent channels", 2, 5, (24, 40), 4),
    ("four latent channels", 1, 9, (16, 24), 1),
    ("two resamplings", 1, 13, (12, 20), 1),
]


@functools.partial(jax.jit, static_argnums=1, static_argnames=("frames_per_chunk", "tile"))
def encode(params: Params, config: vae.VAEConfig, video: jax.Array, **options: object) -> jax.Array:
    """The reference does not normalise: so undo it."""
    return vae.denormalize(config, vae.encode(params, config, video, **options))


@functools.partial(jax.jit, static_argnums=1, static_argnames=("frames_per_chunk", "tile"))
def decode(params: Params, config: vae.VAEConfig, latents: jax.Array, **options: object) -> jax.Array:
    return vae.decode(params, config, vae.normalize(config, latents), **options)


def assert_close(ours: jax.Array, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    error, scale = np.abs(np.asarray(ours) - theirs).max(), np.abs(theirs).max()
    assert error <= BOUND * scale, f"{error / scale:.1e} of the scale"


@pytest.mark.parametrize(("name", "batch", "frames", "size", "chunk"), CASES)
def test_encode(
    name: str, batch: int, frames: int, size: tuple[int, int], chunk: int, rng: np.random.Generator
) -> None:
    video = rng.uniform(-1, 1, (batch, frames, *size, 3)).astype(np.float32)
    ours = encode(vae_reference.params(name), vae_reference.config(name), video, frames_per_chunk=chunk)
    assert_close(ours, vae_reference.encode(name, video))


@pytest.mark.parametrize(("name", "batch", "frames", "size", "chunk"), CASES)
def test_decode(
    name: str, batch: int, frames: int, size: tuple[int, int], chunk: int, rng: np.random.Generator
) -> None:
    config = vae_reference.config(name)
    latents = draw_latents(config, (batch, frames, *size), rng)
    theirs = vae_reference.decode(name, latents)
    assert np.mean(np.abs(theirs) < 1) > 0.99
    assert_close(decode(vae_reference.params(name), config, latents, frames_per_chunk=chunk), theirs)


def test_tiles(rng: np.random.Generator) -> None:
    """Rows overlap by half; columns by less, and the last one lies all in the overlap: four shapes of tiles."""
    name, size, tile = "one resampling", (12, 14), vae.Tiling((8, 8), (4, 6))
    config, params = vae_reference.config(name), vae_reference.params(name)
    video = rng.uniform(-1, 1, (1, 5, *size, 3)).astype(np.float32)
    latents = draw_latents(config, (1, 5, *size), rng)
    with reference_tiling(name, tile):
        encoded, decoded = vae_reference.encode(name, video), vae_reference.decode(name, latents)
    assert_close(encode(params, config, video, tile=tile), encoded)
    assert_close(decode(params, config, latents, tile=tile), decoded)


@contextmanager
def reference_tiling(name: str, tile: vae.Tiling) -> Iterator[None]:
    model = vae_reference.reference(name)
    model.enable_tiling(*tile.size, *tile.stride)
    try:
        yield
    finally:
        model.disable_tiling()


def draw_latents(config: vae.VAEConfig, shape: tuple[int, int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Latents of a video of that batch, frames, height and width."""
    batch, frames, height, width = shape
    grid = ((frames - 1) // config.temporal_scale + 1, height // config.spatial_scale, width // config.spatial_scale)
    return rng.standard_normal((batch, *grid, config.z_dim)).astype(np.float32)
