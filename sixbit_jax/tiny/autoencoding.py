"""How the autoencoder is trained: videos through encoder, noise and decoder, and what the result costs.

The noise on the latents has a fixed strength relative to their spread. It stands in for a learned variance: a latent
space in which near is alike, which is what the transformer's small errors need.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from sixbit_jax.linear import linear
from sixbit_jax.models import vae
from sixbit_jax.models.vae_coders import decode_piece, stream
from sixbit_jax.models.vae_config import VAEConfig
from sixbit_jax.shapes import Params

_NOISE = 0.05  # of a channel's spread
_LATENT_WEIGHT = 1e-5
_SQUARE_WEIGHT = 4.0  # large errors, those of moving objects, are the visible ones
_EDGE_WEIGHT = 0.1
_FLICKER_WEIGHT = 0.1


def init_params(config: VAEConfig, key: Key[Array, ""]) -> Params:
    """Random parameters with a constant log-variance, which no gradient ever reaches."""
    params = vae.init_params(config, key)
    moments = params["to_moments"]
    is_mean = jnp.arange(2 * config.z_dim) < config.z_dim
    weight = jnp.where(is_mean[:, None], moments["weight"], 0.0)
    bias = jnp.where(is_mean, moments["bias"], 2 * math.log(_NOISE))
    return params | {"to_moments": {"weight": weight, "bias": bias}}


def half_precision(params: Params, abstract: Params) -> Params:
    """Master weights in the dtypes of the model that computes."""
    return jax.tree.map(lambda p, like: p.astype(like.dtype), params, abstract)


def loss(
    params: Params, config: VAEConfig, videos: Float[Array, "b frames height width 3"], key: Key[Array, ""]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The cost in f32, with figures for the log. `config` must leave latents as they are (means 0, deviations 1)."""
    computing = half_precision(params, vae.abstract_params(config, jnp.bfloat16))
    latents = vae.encode(computing, config, videos, frames_per_chunk=videos.shape[1])
    spread = jax.lax.stop_gradient(latents.std((0, 1, 2, 3), keepdims=True))
    noise = _NOISE * spread * jax.random.normal(key, latents.shape)
    seen = decode_unclipped(computing, latents + noise).astype(jnp.float32)
    error = seen - videos
    squared = jnp.mean(error**2)
    total = (
        jnp.mean(jnp.abs(error))
        + _SQUARE_WEIGHT * squared
        + _EDGE_WEIGHT * _edges(error)
        + _FLICKER_WEIGHT * _flicker(error)
    )
    total = total + _LATENT_WEIGHT * jnp.mean(latents**2)
    # Pixels span 2, so the peak of [-1, 1] squared is 4.
    return total, {"loss": total, "psnr": 10 * jnp.log10(4 / squared), "spread": spread.mean()}


def decode_unclipped(params: Params, latents: Float[Array, "b t h w c"]) -> Float[Array, "b frames height width 3"]:
    """`vae.decode` without its clip, through which no gradient would come back for pixels that overshoot."""
    weights = params["from_latents"]
    features = linear(latents.astype(weights["weight"].dtype), weights["weight"], weights["bias"])
    return stream(lambda x, past: decode_piece(params["decoder"], x, past), features, latents.shape[1])


def with_statistics(config: VAEConfig, mean: Float[np.ndarray, " c"], std: Float[np.ndarray, " c"]) -> VAEConfig:
    """The configuration that normalises latents by what was measured."""
    rounded = lambda values: tuple(round(float(value), 6) for value in values)
    return dataclasses.replace(config, latents_mean=rounded(mean), latents_std=rounded(std))


def _edges(error: Float[Array, "b t h w 3"]) -> Float[Array, ""]:
    """Wrong differences between neighbouring pixels: blur costs more than a shade that is off."""
    across, down = jnp.diff(error, axis=3), jnp.diff(error, axis=2)
    return jnp.mean(jnp.abs(across)) + jnp.mean(jnp.abs(down))


def _flicker(error: Float[Array, "b t h w 3"]) -> Float[Array, ""]:
    """Wrong differences between neighbouring frames."""
    return jnp.mean(jnp.abs(jnp.diff(error, axis=1)))
