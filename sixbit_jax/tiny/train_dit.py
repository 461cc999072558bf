"""Stage 2: text encoder and transformer learn together to turn noise into latents of the captioned world.

encode_clips --> latents on the device, once     (meanwhile the step compiles, and later the sheet of samples)
latents + fresh captions --flow.loss--> TrainState ... --> dit.npz: averaged weights of both models
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sixbit_jax.evaluate.contact_sheet import write_contact_sheet
from sixbit_jax.models.vae_config import VAEConfig
from sixbit_jax.shapes import Params
from sixbit_jax.tiny import flow
from sixbit_jax.tiny.ahead import ahead
from sixbit_jax.tiny.captions import caption_tokens
from sixbit_jax.tiny.checkpointing import load_tree, save_tree
from sixbit_jax.tiny.clips import abstract_clips, encode_clips
from sixbit_jax.tiny.generate import decode, generate, tokenize
from sixbit_jax.tiny.optimizer import OptimizerConfig, TrainState, advance, start
from sixbit_jax.tiny.prompts import held_out_prompts
from sixbit_jax.tiny.sizes import Sizes
from sixbit_jax.tiny.train_vae import load_vae
from sixbit_jax.tiny.training import Budget, Stage, chunk_of, fit

_DATA_SEED, _PROMPT_SEED = 2_000_003, 3_000_017  # distinct from those of training steps


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
    recompute: bool
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
    clips = abstract_clips(vae_config, run.sizes, run.clips)
    chunk = chunk_of(functools.partial(train_step, run), budget.chunk)
    run_chunk = ahead(chunk, state, clips, jnp.int32(0), donate=(0,))
    sheet = _Sheet(run, stage.work, vae_config, vae_params, state.ema)
    data = _encode_world(run, vae_config, vae_params)
    state = fit(stage, run_chunk, state, data, budget, total, sheet.write)
    save_tree(stage.work / "dit.npz", state.ema, {"step": int(state.step)})
    sheet.write(state)


def load_dit(work: Path, sizes: Sizes) -> Params:
    """The result of the stage: {"text_encoder", "transformer"} in f32."""
    abstract = jax.eval_shape(lambda: flow.init_params(sizes, jax.random.key(0)))
    return load_tree(work / "dit.npz", abstract)


def train_step(
    run: DiTRun, state: TrainState, data: dict[str, Any], total: Array
) -> tuple[TrainState, dict[str, Array]]:
    """One optimizer step on clips and captions that follow from the seed and the step."""
    pick_key, words_key, flow_key = jax.random.split(jax.random.fold_in(jax.random.key(run.seed), state.step), 3)
    rows = jax.random.randint(pick_key, (run.batch,), 0, run.clips)
    clips = jax.tree.map(lambda leaf: leaf[rows], data)
    ids, mask = jax.vmap(caption_tokens)(clips["scenes"], jax.random.split(words_key, run.batch))
    loss = functools.partial(flow.loss, recompute=run.recompute)
    gradients, metrics = jax.grad(loss, has_aux=True)(
        state.params, run.sizes, clips["latents"].astype(jnp.float32), ids, mask, flow_key, run.attention
    )
    return advance(run.optimizer, state, gradients, total), metrics


def _encode_world(run: DiTRun, config: VAEConfig, params: Params) -> dict[str, Any]:
    begun = time.perf_counter()
    key = jax.random.key(run.seed + _DATA_SEED)
    data = jax.block_until_ready(encode_clips(params, config, run.sizes, key, run.clips, run.encoded))
    spread = float(data["latents"].astype(jnp.float32).std())
    seconds = time.perf_counter() - begun
    print(f"dit: {run.clips} clips encoded in {seconds:.0f} s, deviation of the latents {spread:.3f}", flush=True)
    return data


class _Sheet:
    """Writes videos from the averaged weights, for prompts that training never shows; compiles when it is made."""

    def __init__(self, run: DiTRun, work: Path, config: VAEConfig, vae_params: Params, ema: Params):
        self._prompts = [prompt for prompt, _ in held_out_prompts(run.shown, _PROMPT_SEED)]
        self._work = work
        noise = jax.random.normal(jax.random.key(_PROMPT_SEED), (run.shown, *run.sizes.latent_shape))
        self._fixed = (vae_params, *map(jnp.asarray, tokenize(self._prompts)), noise)
        self._sample = ahead(functools.partial(_sample, run, config), ema, *self._fixed)

    def write(self, state: TrainState) -> None:
        videos = np.asarray(self._sample(state.ema, *self._fixed))
        write_contact_sheet(self._work / f"samples-{int(state.step):06}.png", list(videos), self._prompts)


def _sample(
    run: DiTRun, config: VAEConfig, ema: Params, vae_params: Params, ids: Array, mask: Array, noise: Array
) -> Array:
    params = flow.half_params(ema, run.sizes)
    latents = generate(params, run.sizes, ids, mask, noise, steps=run.sample_steps, guidance=run.guidance)
    return decode(vae_params, config, latents)
