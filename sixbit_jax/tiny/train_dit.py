"""Stage 2: text encoder and transformer learn together to turn noise into latents of the captioned world.

scenes --render, encode--> latents on the device, once
latents + fresh captions --flow.loss--> TrainState ... --> dit.npz: averaged weights of both models
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sixbit_jax.evaluate.contact_sheet import write_contact_sheet
from sixbit_jax.models import vae
from sixbit_jax.models.vae_config import VAEConfig
from sixbit_jax.shapes import Params
from sixbit_jax.tiny import flow
from sixbit_jax.tiny.autoencoding import half_precision
from sixbit_jax.tiny.batches import sample_batch
from sixbit_jax.tiny.captions import caption_tokens
from sixbit_jax.tiny.checkpointing import load_tree, save_tree
from sixbit_jax.tiny.generate import decode_bytes, generate, tokenize
from sixbit_jax.tiny.optimizer import OptimizerConfig, TrainState, advance, start
from sixbit_jax.tiny.prompts import held_out_prompts
from sixbit_jax.tiny.sizes import Sizes
from sixbit_jax.tiny.train_vae import load_vae
from sixbit_jax.tiny.training import Budget, Stage, fit

_DATA_SEED, _PROMPT_SEED = 2_000_003, 3_000_017  # distinct from those of training steps
_PAIR_SHARE = 0.5  # of the clips: more than the world's, since two objects take longer to learn


@dataclasses.dataclass(frozen=True)
class DiTRun:
    """What the command asks for. `clips` are encoded once, `encoded` of them at a time."""

    sizes: Sizes
    seed: int
    batch: int
    clips: int
    encoded: int
    optimizer: OptimizerConfig
    attention: str | None
    shown: int
    sample_steps: int
    guidance: float


def train_dit(run: DiTRun, stage: Stage, budget: Budget, *, resume: bool) -> None:
    """Train and write `dit.npz`; sheets of samples show how far it is."""
    vae_config, vae_params = load_vae(stage.work)
    # One program instead of one per shape of a parameter.
    init = jax.jit(lambda key: start(run.optimizer, flow.init_params(run.sizes, key)))
    state = init(jax.random.key(run.seed))
    total = None
    if resume:
        state, total = stage.restore(state)
    for name, tree in state.params.items():
        print(f"dit: {name} {sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6:.2f} M parameters", flush=True)
    data = _encode_world(run, vae_config, vae_params)
    show = functools.partial(_show_samples, run, stage.work, vae_config, vae_params)
    # Once before training too: it compiles, and the budget then knows what that took.
    show(state)
    state = fit(stage, functools.partial(_step, run), state, data, budget, total, show)
    save_tree(stage.work / "dit.npz", state.ema, {"step": int(state.step)})
    show(state)


def load_dit(work: Path, sizes: Sizes) -> Params:
    """The result of the stage: {"text_encoder", "transformer"} in f32."""
    abstract = jax.eval_shape(lambda: flow.init_params(sizes, jax.random.key(0)))
    return load_tree(work / "dit.npz", abstract)


def _step(run: DiTRun, state: TrainState, data: dict[str, Any], total: Array) -> tuple[TrainState, dict[str, Array]]:
    pick_key, words_key, flow_key = jax.random.split(jax.random.fold_in(jax.random.key(run.seed), state.step), 3)
    rows = jax.random.randint(pick_key, (run.batch,), 0, run.clips)
    clips = jax.tree.map(lambda leaf: leaf[rows], data)
    ids, mask = jax.vmap(caption_tokens)(clips["scenes"], jax.random.split(words_key, run.batch))
    gradients, metrics = jax.grad(flow.loss, has_aux=True)(
        state.params, run.sizes, clips["latents"].astype(jnp.float32), ids, mask, flow_key, run.attention
    )
    return advance(run.optimizer, state, gradients, total), metrics


def _encode_world(run: DiTRun, config: VAEConfig, params: Params) -> dict[str, Any]:
    """Latents (bf16) and scenes of `clips` training videos."""
    begun = time.perf_counter()
    computing = half_precision(params, vae.abstract_params(config, jnp.bfloat16))
    keys = jax.random.split(jax.random.key(run.seed + _DATA_SEED), -(-run.clips // run.encoded))
    data = jax.block_until_ready(_encode_all(computing, config, run, keys))
    spread = float(data["latents"].astype(jnp.float32).std())
    seconds = time.perf_counter() - begun
    print(f"dit: {run.clips} clips encoded in {seconds:.0f} s, deviation of the latents {spread:.3f}", flush=True)
    return data


@functools.partial(jax.jit, static_argnums=(1, 2))
def _encode_all(params: Params, config: VAEConfig, run: DiTRun, keys: Array) -> dict[str, Any]:
    sizes = run.sizes

    def one(key: Array) -> dict[str, Any]:
        frames, height, width = sizes.frames, sizes.height, sizes.width
        batch = sample_batch(key, run.encoded, frames=frames, height=height, width=width, pair_share=_PAIR_SHARE)
        latents = vae.encode(params, config, batch.videos, frames_per_chunk=sizes.frames)
        return {"latents": latents.astype(jnp.bfloat16), "scenes": batch.scenes}

    stacked = jax.lax.map(one, keys)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[: run.clips], stacked)


def _show_samples(run: DiTRun, work: Path, config: VAEConfig, vae_params: Params, state: TrainState) -> None:
    """A sheet of videos from the averaged weights, for prompts that training never shows."""
    prompts = [prompt for prompt, _ in held_out_prompts(run.shown, _PROMPT_SEED)]
    ids, mask = tokenize(prompts)
    noise = jax.random.normal(jax.random.key(_PROMPT_SEED), (run.shown, *run.sizes.latent_shape))
    params = flow.half_params(state.ema, run.sizes)
    latents = generate(params, run.sizes, ids, mask, noise, steps=run.sample_steps, guidance=run.guidance)
    videos = decode_bytes(vae_params, config, latents)
    write_contact_sheet(work / f"samples-{int(state.step):06}.png", list(videos), prompts)
