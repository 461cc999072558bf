"""The clips a transformer trains on: latents and scenes of random videos, made once and kept on the device."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from sixbit_jax.models import vae
from sixbit_jax.models.vae_config import VAEConfig
from sixbit_jax.shapes import Params
from sixbit_jax.tiny.autoencoding import half_precision
from sixbit_jax.tiny.batches import sample_batch
from sixbit_jax.tiny.sizes import Sizes

_PAIR_SHARE = 0.5  # of the clips: more than the world's, since two objects take longer to learn
_CALLS = 16  # of the encoder: between them, what compiles in the background gets the device to tune its kernels on


def encode_clips(
    params: Params, config: VAEConfig, sizes: Sizes, key: Key[Array, ""], count: int, at_once: int
) -> dict[str, Any]:
    """`count` clips as {"latents": bf16 (n, t, h, w, c), "scenes": Scene}, `at_once` of them encoded together."""
    computing = half_precision(params, vae.abstract_params(config, jnp.bfloat16))
    batches = -(-count // at_once)
    calls = -(-batches // -(-batches // _CALLS))
    keys = jax.random.split(key, (calls, -(-batches // calls)))
    parts = [_encode(computing, config, sizes, part, at_once) for part in keys]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:count], *parts)


def abstract_clips(config: VAEConfig, sizes: Sizes, count: int) -> dict[str, Any]:
    """Shapes of what `encode_clips` returns."""
    one = jax.eval_shape(
        functools.partial(_encode, config=config, sizes=sizes, at_once=1),
        vae.abstract_params(config, jnp.bfloat16),
        keys=jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1)),
    )
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype), one)


@functools.partial(jax.jit, static_argnames=("config", "sizes", "at_once"))
def _encode(
    params: Params, config: VAEConfig, sizes: Sizes, keys: Key[Array, " batches"], at_once: int
) -> dict[str, Any]:
    frames, height, width = sizes.frames, sizes.height, sizes.width

    def one(key: Array) -> dict[str, Any]:
        batch = sample_batch(key, at_once, frames=frames, height=height, width=width, pair_share=_PAIR_SHARE)
        latents = vae.encode(params, config, batch.videos, frames_per_chunk=frames)
        return {"latents": latents.astype(jnp.bfloat16), "scenes": batch.scenes}

    stacked = jax.lax.map(one, keys)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), stacked)
