"""The Wan 2.1 video autoencoder: pixels in [-1, 1] to normalised latents and back.

The first frame stands alone; every later latent frame holds `temporal_scale` frames. Nothing looks into the future, so
both ways stream through time in pieces of `frames_per_chunk` latent frames: the result does not depend on it, memory
does. `Tiling` bounds memory in space.

    video (b, 1 + 4·n, 8·h, 8·w, 3) --encode--> latents (b, 1 + n, h, w, 16) --decode--> video
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sixbit_jax.errors import UserError
from sixbit_jax.linear import linear
from sixbit_jax.models.vae_coders import decode_piece, encode_piece, stream
from sixbit_jax.models.vae_config import VAEConfig
from sixbit_jax.models.vae_modules import abstract_params, init_params
from sixbit_jax.models.vae_tiling import Tiling, map_tiles
from sixbit_jax.shapes import Params

__all__ = ["Tiling", "VAEConfig", "abstract_params", "decode", "denormalize", "encode", "init_params", "normalize"]


def encode(
    params: Params,
    config: VAEConfig,
    video: Float[Array, "b frames height width 3"],
    *,
    frames_per_chunk: int = 1,
    tile: Tiling | None = None,
) -> Float[Array, "b t h w c"]:
    """The mean of the posterior, normalised, in f32.

    >>> import jax, jax.numpy as jnp
    >>> config = VAEConfig(base_dim=4, num_res_blocks=1)
    >>> params, video = init_params(config, jax.random.key(0)), jnp.zeros((1, 5, 16, 24, 3))
    >>> jax.jit(encode, static_argnums=1)(params, config, video).shape
    (1, 2, 2, 3, 16)
    """
    _check_video(config, video.shape)
    _check_chunk(frames_per_chunk)

    def code(part: Float[Array, "b frames height width 3"]) -> Float[Array, "b t h w c"]:
        length = frames_per_chunk * config.temporal_scale
        features = stream(lambda x, past: encode_piece(params["encoder"], x, past), part, length)
        moments = linear(features, params["to_moments"]["weight"], params["to_moments"]["bias"])
        return moments[..., : config.z_dim]

    video = video.astype(_compute_dtype(params))
    if tile is None or not tile.needed(*video.shape[2:4]):
        return normalize(config, code(video))
    return normalize(config, map_tiles(code, video, tile, tile.shrink(config.spatial_scale)))


def decode(
    params: Params,
    config: VAEConfig,
    latents: Float[Array, "b t h w c"],
    *,
    frames_per_chunk: int = 1,
    tile: Tiling | None = None,
) -> Float[Array, "b frames height width 3"]:
    """Normalised latents to a video clipped to [-1, 1], in the dtype of the parameters.

    >>> import jax, jax.numpy as jnp
    >>> config = VAEConfig(base_dim=4, num_res_blocks=1)
    >>> params, latents = init_params(config, jax.random.key(0)), jnp.zeros((1, 2, 2, 3, 16))
    >>> jax.jit(decode, static_argnums=1)(params, config, latents).shape
    (1, 5, 16, 24, 3)
    """
    _check_chunk(frames_per_chunk)

    def code(part: Float[Array, "b t h w c"]) -> Float[Array, "b frames height width 3"]:
        features = linear(part, params["from_latents"]["weight"], params["from_latents"]["bias"])
        return stream(lambda x, past: decode_piece(params["decoder"], x, past), features, frames_per_chunk)

    latents = denormalize(config, latents).astype(_compute_dtype(params))
    height, width = (config.spatial_scale * extent for extent in latents.shape[2:4])
    if tile is None or not tile.needed(height, width):
        return jnp.clip(code(latents), -1, 1)
    return jnp.clip(map_tiles(code, latents, tile.shrink(config.spatial_scale), tile), -1, 1)


def normalize(config: VAEConfig, latents: Float[Array, "... c"]) -> Float[Array, "... c"]:
    """The autoencoder's own latents to those the transformer works on, in f32: `(z - mean) / std`."""
    mean, std = _statistics(config, latents.shape)
    return (latents.astype(jnp.float32) - mean) / std


def denormalize(config: VAEConfig, latents: Float[Array, "... c"]) -> Float[Array, "... c"]:
    """The inverse of `normalize`: `z · std + mean`, in f32."""
    mean, std = _statistics(config, latents.shape)
    return latents.astype(jnp.float32) * std + mean


def _statistics(config: VAEConfig, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    values = jnp.array([config.latents_mean, config.latents_std], jnp.float32)
    return jnp.broadcast_to(values[0], shape), jnp.broadcast_to(values[1], shape)


def _compute_dtype(params: Params) -> jnp.dtype:
    return params["from_latents"]["weight"].dtype


def _check_video(config: VAEConfig, shape: tuple[int, ...]) -> None:
    frames, height, width = shape[1:4]
    if (frames - 1) % config.temporal_scale:
        nearest = max(1, round((frames - 1) / config.temporal_scale) * config.temporal_scale + 1)
        raise UserError(f"video: {frames} frames are not {config.temporal_scale}n+1; the nearest is {nearest}")
    for name, pixels in (("height", height), ("width", width)):
        if pixels % config.spatial_scale:
            nearest = max(1, round(pixels / config.spatial_scale)) * config.spatial_scale
            raise UserError(
                f"video: {name} {pixels} is not a multiple of {config.spatial_scale}; the nearest is {nearest}"
            )


def _check_chunk(frames_per_chunk: int) -> None:
    if frames_per_chunk < 1:
        raise UserError(f"frames_per_chunk {frames_per_chunk} is too small; the smallest is 1")
