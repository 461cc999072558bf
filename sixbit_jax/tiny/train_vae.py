"""Stage 1: the autoencoder learns to draw the world's videos.

scenes --render--> videos --autoencoding.loss--> TrainState ... --> vae.npz: averaged weights, latent statistics
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sixbit_jax.components import Components
from sixbit_jax.evaluate.contact_sheet import write_contact_sheet
from sixbit_jax.evaluate.metrics import psnr
from sixbit_jax.models import vae
from sixbit_jax.models.vae_config import VAEConfig
from sixbit_jax.shapes import Params
from sixbit_jax.tiny import autoencoding
from sixbit_jax.tiny.batches import sample_batch
from sixbit_jax.tiny.checkpointing import load_facts, load_tree, save_tree
from sixbit_jax.tiny.optimizer import OptimizerConfig, TrainState, advance, start
from sixbit_jax.tiny.scene import Scene
from sixbit_jax.tiny.sizes import Sizes
from sixbit_jax.tiny.training import Budget, Stage, chunk_of, fit

_HELD_OUT_SEED = 1_000_003  # of the scenes that quality is measured on
_SHOWN = 4  # videos on a contact sheet


@dataclasses.dataclass(frozen=True)
class VAERun:
    """What the command asks for. `checked` and `measured` count the clips of the report and of the statistics."""

    sizes: Sizes
    seed: int
    batch: int
    crop: int
    optimizer: OptimizerConfig
    checked: int
    measured: int


def train_vae(run: VAERun, stage: Stage, budget: Budget, *, resume: bool) -> dict[str, Any]:
    """Train, measure, and write `vae.npz` with the report."""
    config = run.sizes.vae
    state = _initial(run, jax.random.key(run.seed))
    total = None
    if resume:
        state, total = stage.restore(state)
    print(f"vae: {sum(leaf.size for leaf in jax.tree.leaves(state.params)) / 1e6:.2f} M parameters", flush=True)
    # Once before training too: both compile, and the budget then knows what that took.
    _check(run, stage.work, config, state)
    jax.block_until_ready(encode_batch(state.ema, config, run, jax.random.key(0)))
    run_chunk = _chunk(run, budget.chunk)
    state = fit(stage, run_chunk, state, (), budget, total, lambda state: print(_check(run, stage.work, config, state)))
    config = _normalised(run, config, state.ema)
    report = _check(run, stage.work, run.sizes.vae, state)
    save_tree(stage.work / "vae.npz", state.ema, {"config": config.to_dict(), "report": report})
    return report


def adopt_vae(work: Path, folder: Path) -> None:
    """The autoencoder of a pipeline folder as the result of the stage: its weights have been rounded to f16 once."""
    components = Components.load(folder, "f32")
    facts = {"config": components.vae_config.to_dict(), "report": {"adopted": folder.name}}
    save_tree(work / "vae.npz", components.vae_params, facts)


def load_vae(work: Path) -> tuple[VAEConfig, Params]:
    """The result of the stage, in f32."""
    config = VAEConfig.from_dict(load_facts(work / "vae.npz")["config"])
    return config, load_tree(work / "vae.npz", vae.abstract_params(config))


@functools.partial(jax.jit, static_argnums=(1, 2))
def encode_batch(params: Params, config: VAEConfig, run: VAERun, key: Array) -> Float[Array, "b t h w c"]:
    """Normalised latents of a batch of training scenes, in f32."""
    videos = _videos(run, key, run.batch, held_out=False)
    computing = autoencoding.half_precision(params, vae.abstract_params(config, jnp.bfloat16))
    return vae.encode(computing, config, videos, frames_per_chunk=videos.shape[1])


@functools.partial(jax.jit, static_argnums=0)
def _initial(run: VAERun, key: Array) -> TrainState:
    """One program instead of one per shape of a parameter."""
    return start(run.optimizer, autoencoding.init_params(run.sizes.vae, key))


@functools.cache
def _chunk(run: VAERun, length: int) -> Callable[..., Any]:
    """Compiled once, also for a run that goes on where it stopped."""
    return jax.jit(chunk_of(functools.partial(_step, run), length), donate_argnums=0)


def _step(run: VAERun, state: TrainState, _: Any, total: Array) -> tuple[TrainState, dict[str, Array]]:
    scene_key, crop_key, noise_key = jax.random.split(jax.random.fold_in(jax.random.key(run.seed), state.step), 3)
    videos = _crops(run, scene_key, crop_key)
    gradients, metrics = jax.grad(autoencoding.loss, has_aux=True)(state.params, run.sizes.vae, videos, noise_key)
    return advance(run.optimizer, state, gradients, total), metrics


def _videos(run: VAERun, key: Array, count: int, *, held_out: bool) -> Float[Array, "b frames height width 3"]:
    sizes = run.sizes
    batch = sample_batch(key, count, frames=sizes.frames, height=sizes.height, width=sizes.width, held_out=held_out)
    return batch.videos


def _crops(run: VAERun, scene_key: Array, crop_key: Array) -> Float[Array, "b frames side side 3"]:
    """Windows around an object of each training scene: the rest is still, and soon learned."""
    sizes, side = run.sizes, run.crop
    batch = sample_batch(scene_key, run.batch, frames=sizes.frames, height=sizes.height, width=sizes.width)

    def one(scene: Scene, video: Array, key: Array) -> Array:
        which_key, shift_key = jax.random.split(key)
        present = scene.objects.present.astype(jnp.float32)
        centre = scene.objects.centre[jax.random.categorical(which_key, jnp.log(present))]
        shift = jax.random.uniform(shift_key, (2,), minval=-0.9, maxval=-0.1)
        extent = jnp.array([sizes.width, sizes.height], jnp.float32)
        corner = jnp.clip(centre * extent + shift * side, 0, extent - side).astype(jnp.int32)
        return jax.lax.dynamic_slice(video, (0, corner[1], corner[0], 0), (sizes.frames, side, side, 3))

    return jax.vmap(one)(batch.scenes, batch.videos, jax.random.split(crop_key, run.batch))


def _normalised(run: VAERun, config: VAEConfig, params: Params) -> VAEConfig:
    """Mean and deviation of each channel over training scenes."""
    keys = jax.random.split(jax.random.key(run.seed + _HELD_OUT_SEED), -(-run.measured // run.batch))
    latents = np.concatenate([np.asarray(encode_batch(params, config, run, key)) for key in keys])
    axes = (0, 1, 2, 3)
    return autoencoding.with_statistics(config, latents.mean(axes, np.float64), latents.std(axes, dtype=np.float64))


def _check(run: VAERun, work: Path, config: VAEConfig, state: TrainState) -> dict[str, Any]:
    """Quality of the averaged weights in f32 on scenes never trained on, and a sheet: originals over copies."""
    videos: list[np.ndarray] = []
    copies: list[np.ndarray] = []
    for key in jax.random.split(jax.random.key(_HELD_OUT_SEED), -(-run.checked // run.batch)):
        original, copy = jax.device_get(_reconstruct(state.ema, config, run, key))
        videos, copies = [*videos, *original], [*copies, *copy]
    shown = [video for pair in zip(videos[:_SHOWN], copies[:_SHOWN], strict=True) for video in pair]
    write_contact_sheet(work / "vae-sheet.png", shown, ["original", "reconstruction"] * (len(shown) // 2))
    ratios = [psnr(copy, video) for copy, video in zip(copies, videos, strict=True)]
    flicker = [np.abs(np.diff(copy - video, axis=0)).mean() for copy, video in zip(copies, videos, strict=True)]
    return {
        "step": int(state.step),
        "psnr": round(float(np.mean(ratios)), 3),
        "psnr_lowest": round(float(np.min(ratios)), 3),
        "flicker": round(float(np.mean(flicker)) * 127.5, 3),  # in levels of 255, between neighbouring frames
    }


@functools.partial(jax.jit, static_argnums=(1, 2))
def _reconstruct(params: Params, config: VAEConfig, run: VAERun, key: Array) -> tuple[Array, Array]:
    """One video at a time: f32 convolutions of a whole batch would need several times its memory."""
    videos = _videos(run, key, run.batch, held_out=True)

    def one(video: Array) -> Array:
        latents = vae.encode(params, config, video[None], frames_per_chunk=len(video))
        return vae.decode(params, config, latents, frames_per_chunk=len(video))[0]

    return videos, jax.lax.map(one, videos)
