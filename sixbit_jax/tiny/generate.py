"""Many videos at once from captions' tokens: the mathematics of `WanPipeline` for a batch, without its policies."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from sixbit_jax import schedulers
from sixbit_jax.models import vae, wan
from sixbit_jax.models.vae_config import VAEConfig
from sixbit_jax.schedulers import StepPlan
from sixbit_jax.shapes import Params
from sixbit_jax.text import Tokenizer
from sixbit_jax.tiny import flow
from sixbit_jax.tiny.captions import CAPTION_LENGTH
from sixbit_jax.tiny.lexicon import END_ID, PAD_ID, UNKNOWN_ID
from sixbit_jax.tiny.sizes import Sizes
from sixbit_jax.tiny.tokenizer import build_tokenizer

_DECODED = 8  # videos at once


def tokenize(prompts: Sequence[str]) -> tuple[Int[np.ndarray, "b p"], Int[np.ndarray, "b p"]]:
    """Ids and mask of the world's prompts, as the pipeline would have them but for the padding to 512."""
    tokenizer = Tokenizer(build_tokenizer(), pad_id=PAD_ID, end_id=END_ID, unknown_id=UNKNOWN_ID)
    return tokenizer(prompts, length=CAPTION_LENGTH)


def generate(
    params: Params,
    sizes: Sizes,
    ids: Int[Array | np.ndarray, "b p"],
    mask: Int[Array | np.ndarray, "b p"],
    noise: Float[Array, "b t h w c"],
    *,
    steps: int,
    guidance: float,
    shift: float = flow.SHIFT,
) -> Float[Array, "b t h w c"]:
    """Denoise with UniPC. `params` holds both models in the dtypes they compute in."""
    plan = schedulers.get("unipc").plan(steps, shift=shift, schedule="diffusers")
    return _denoise(params, sizes, ids, mask, noise, jax.tree.map(jnp.asarray, plan), jnp.float32(guidance))


def decode_bytes(
    params: Params, config: VAEConfig, latents: Float[Array, "b t h w c"]
) -> UInt8[np.ndarray, "b frames height width 3"]:
    """The videos of latents, as files hold them."""
    return np.asarray(decode(params, config, latents))


@functools.partial(jax.jit, static_argnums=1)
def _denoise(
    params: Params, sizes: Sizes, ids: Array, mask: Array, noise: Array, plan: StepPlan, guidance: Array
) -> Float[Array, "b t h w c"]:
    empty_ids, empty_mask = flow.drop_captions(ids, mask, jnp.ones(len(ids), bool))
    doubled_ids, doubled_mask = jnp.concatenate([ids, empty_ids]), jnp.concatenate([mask, empty_mask])
    both = flow.as_sampled(flow.read_captions(params, sizes, doubled_ids, doubled_mask))
    scheduler = schedulers.get("unipc")

    def step(carry: tuple[Array, Any], info: StepPlan) -> tuple[tuple[Array, Any], None]:
        latents, state = carry
        timestep = jnp.broadcast_to(info.timestep, (2 * len(ids),))
        doubled = jnp.concatenate([latents, latents])
        velocity, _, _ = wan.forward(params["transformer"], sizes.transformer, doubled, timestep, both)
        conditional, unconditional = jnp.split(velocity, 2)
        guided = unconditional + guidance * (conditional - unconditional)
        return scheduler.step(state, latents, guided, info), None

    (latents, _), _ = lax.scan(step, (noise, scheduler.init(noise)), plan)
    return latents


@functools.partial(jax.jit, static_argnums=1)
def decode(params: Params, config: VAEConfig, latents: Array) -> UInt8[Array, "b frames height width 3"]:
    """`decode_bytes` on the device."""

    def one(part: Array) -> Array:
        video = vae.decode(params, config, part[None], frames_per_chunk=len(part))[0]
        return jnp.round((video.astype(jnp.float32) + 1) * 127.5).astype(jnp.uint8)

    return lax.map(one, latents, batch_size=min(_DECODED, len(latents)))
