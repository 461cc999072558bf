"""How well a tiny model does what captions say: generate from held-out prompts, read the videos, count what is right.

held_out_prompts --generate, decode--> videos --evaluate.captions.measure--> readings --score--> accuracies
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from sixbit_jax.components import Components
from sixbit_jax.evaluate.captions import accuracy, measure
from sixbit_jax.evaluate.contact_sheet import write_contact_sheet
from sixbit_jax.evaluate.metrics import pairwise_distance
from sixbit_jax.models import vae
from sixbit_jax.tiny.attributes import attributes
from sixbit_jax.tiny.batches import sample_batch
from sixbit_jax.tiny.generate import decode_bytes, generate, tokenize
from sixbit_jax.tiny.prompts import held_out_prompts
from sixbit_jax.tiny.sizes import Sizes

_PROMPT_SEED, _SCENE_SEED = 5_000_011, 6_000_029  # distinct from those of training
_SHOWN = 16


@dataclasses.dataclass(frozen=True)
class Assessment:
    """What to measure. `batch` videos are made at once."""

    prompts: int
    seeds: int
    batch: int
    steps: int
    guidance: float


def assess(model: str, wanted: Assessment, folder: Path, *, dtype: str) -> dict[str, Any]:
    """Accuracies over all prompts and seeds; a contact sheet of the first prompts goes to `folder`."""
    components = Components.load(model, dtype)
    sizes = _sizes(components)
    pairs = held_out_prompts(wanted.prompts, _PROMPT_SEED)
    prompts, truths = [prompt for prompt, _ in pairs], [truth for _, truth in pairs]
    runs = [_videos(components, sizes, prompts, seed, wanted) for seed in range(wanted.seeds)]
    folder.mkdir(parents=True, exist_ok=True)
    write_contact_sheet(folder / "held-out-prompts.png", list(runs[0][:_SHOWN]), prompts[:_SHOWN])
    scores = accuracy([measure(video) for run in runs for video in run], truths * wanted.seeds)
    single = [index for index, truth in enumerate(truths) if len(truth.objects) == 1]
    alone = [measure(run[index]) for run in runs for index in single]
    distances = [pairwise_distance(list(videos)) for videos in zip(*runs, strict=True)] if len(runs) > 1 else [0.0]
    return {
        **dataclasses.asdict(wanted),
        "accuracy": scores,
        "accuracy_one_object": accuracy(alone, [truths[i] for i in single] * len(runs)) if single else None,
        "distance_between_seeds": float(np.mean(distances)),
    }


def assess_autoencoder(model: str, count: int) -> dict[str, float]:
    """Accuracies on rendered videos that went through the autoencoder: the ceiling of everything above."""
    components = Components.load(model, "f32")
    config, params = components.vae_config, components.vae_params
    make = jax.jit(lambda key: sample_batch(key, 1, held_out=True))
    code = jax.jit(lambda video: vae.decode(params, config, vae.encode(params, config, video)))
    readings, truths = [], []
    for key in jax.random.split(jax.random.key(_SCENE_SEED), count):
        batch = make(key)
        readings.append(measure(np.asarray(code(batch.videos))[0]))
        truths.append(attributes(jax.tree.map(lambda leaf: np.asarray(leaf)[0], batch.scenes)))
    return accuracy(readings, truths)


def _videos(
    components: Components, sizes: Sizes, prompts: Sequence[str], seed: int, wanted: Assessment
) -> list[UInt8[np.ndarray, "t h w 3"]]:
    """One video a prompt; noise depends on (seed, position) alone."""
    params = {"text_encoder": components.text_params, "transformer": components.experts[0]}
    noise_of: Callable[[int], jax.Array] = lambda index: jax.random.normal(
        jax.random.fold_in(jax.random.key(seed), index), sizes.latent_shape
    )
    videos: list[np.ndarray] = []
    for start in range(0, len(prompts), wanted.batch):
        part = prompts[start : start + wanted.batch]
        ids, mask = tokenize(part)
        noise = jnp.stack([noise_of(start + offset) for offset in range(len(part))])
        latents = generate(params, sizes, ids, mask, noise, steps=wanted.steps, guidance=wanted.guidance)
        videos += list(decode_bytes(components.vae_params, components.vae_config, latents))
    return videos


def _sizes(components: Components) -> Sizes:
    defaults = components.defaults
    return Sizes(
        components.transformer_configs[0],
        components.text_config,
        components.vae_config,
        frames=defaults["num_frames"],
        height=defaults["height"],
        width=defaults["width"],
    )
