"""What the autoencoder costs: held-out scenes rendered, passed through it, and read again.

The readings of the rendered videos test the measuring program, those of the copies are the ceiling of every caption
accuracy.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from sixbit_jax.components import Components
from sixbit_jax.evaluate.captions import accuracy, measure
from sixbit_jax.evaluate.metrics import psnr
from sixbit_jax.models import vae
from sixbit_jax.models.vae_config import VAEConfig
from sixbit_jax.shapes import Params
from sixbit_jax.tiny.assess import sizes_of
from sixbit_jax.tiny.attributes import Attributes, attributes
from sixbit_jax.tiny.batches import sample_batch
from sixbit_jax.tiny.generate import decode_bytes
from sixbit_jax.tiny.sizes import Sizes

_SCENE_SEED = 6_000_029  # distinct from those of training
_BATCH = 16
_STILL = 0.5  # levels of 255: what a pixel may change by and still count as standing still

Pixels = UInt8[np.ndarray, "t h w 3"]


@dataclasses.dataclass(frozen=True)
class Clip:
    """A rendered scene and its copy."""

    original: Pixels
    copy: Pixels
    truth: Attributes


def reconstruct(components: Components, count: int) -> list[Clip]:
    """Held-out scenes, rendered and passed through the autoencoder."""
    sizes = sizes_of(components)
    clips: list[Clip] = []
    for key in jax.random.split(jax.random.key(_SCENE_SEED), -(-count // _BATCH)):
        scenes, videos, latents = _encode(components.vae_params, components.vae_config, sizes, key)
        copies = decode_bytes(components.vae_params, components.vae_config, latents)
        scenes = jax.device_get(scenes)
        truths = [attributes(jax.tree.map(lambda leaf, i=i: leaf[i], scenes)) for i in range(_BATCH)]
        clips += [Clip(*each) for each in zip(np.asarray(videos), copies, truths, strict=True)]
    return clips[:count]


def assess_autoencoder(clips: list[Clip]) -> dict[str, Any]:
    """Accuracies before and after, PSNR in dB, and how much the copies flicker, in levels of 255."""
    truths = [clip.truth for clip in clips]
    ratios = [psnr(clip.copy, clip.original) for clip in clips]
    changes = [flicker(clip) for clip in clips]
    return {
        "clips": len(clips),
        "accuracy_rendered": accuracy([measure(clip.original) for clip in clips], truths),
        "accuracy_autoencoded": accuracy([measure(clip.copy) for clip in clips], truths),
        "psnr_mean": float(np.mean(ratios)),
        "psnr_lowest": float(np.min(ratios)),
        "flicker": float(np.mean([of_all for of_all, _ in changes])),
        "flicker_still": float(np.mean([of_still for _, of_still in changes])),
    }


def flicker(clip: Clip) -> tuple[float, float]:
    """Mean wrong change between neighbouring frames: of all pixels, and of those that stand still in the original."""
    original, copy = (np.diff(video.astype(np.float32), axis=0) for video in (clip.original, clip.copy))
    wrong = np.abs(copy - original)
    still = np.abs(original) < _STILL
    return float(wrong.mean()), float(wrong[still].mean()) if still.any() else 0.0


@functools.partial(jax.jit, static_argnums=(1, 2))
def _encode(
    params: Params, config: VAEConfig, sizes: Sizes, key: Array
) -> tuple[Any, UInt8[Array, "b frames height width 3"], Float[Array, "b t h w c"]]:
    """One video at a time: f32 convolutions of a whole batch would need several times its memory."""
    batch = sample_batch(key, _BATCH, frames=sizes.frames, height=sizes.height, width=sizes.width, held_out=True)
    encode = lambda video: vae.encode(params, config, video[None], frames_per_chunk=sizes.frames)[0]
    pixels = jnp.round((batch.videos + 1) * 127.5).astype(jnp.uint8)
    return batch.scenes, pixels, jax.lax.map(encode, batch.videos)
