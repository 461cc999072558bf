"""The VAE against diffusers' `AutoencoderKLWan`: encode, decode, tiles, both key namings.

Bound: 1e-4 of the output's scale. Both sides round f32 at every layer; some 40 layers of sums over at most 27·64 products, whose rounding grows
like eps·sqrt(terms) and is renewed by a norm in every block, stay near 1e-5.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

from converters import wan_vae
from sixbit_jax.models import vae
from sixbit_jax.shapes import Params

pytestmark = pytest.mark.parity

BOUND = 1e-4
SMALL_MEAN_STD = {"latents_mean": [0.5, -1.0, 0.25, 2.0], "latents_std": [2.0, 0.5, 1.5, 3.0]}
CONFIGS = {
    "wan": {"base_dim": 8},
    "four latent channels, one block": {"base_dim": 16, "z_dim": 4, "num_res_blocks": 1, **SMALL_MEAN_STD},
    "two stages": {
        "base_dim": 8,
        "dim_mult": [1, 3, 2],
        "temperal_downsample": [True, True],
        "scale_factor_spatial": 4,
    },
}


@functools.cache
def models(name: str) -> tuple[AutoencoderKLWan, vae.VAEConfig, Params]:
    """The reference with every parameter away from its neutral value, and ours with the same ones."""
    torch.manual_seed(0)
    reference = AutoencoderKLWan(**CONFIGS[name]).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    config = vae.VAEConfig.from_dict(reference.config)
    return reference, config, fill(config, tensors(reference), "diffusers")


def tensors(reference: AutoencoderKLWan) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in reference.state_dict().items()}


def fill(config: vae.VAEConfig, source: dict[str, np.ndarray], naming: str) -> Params:
    """What the converter does with a table: every source key used once, every parameter filled once with its shape."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(vae.abstract_params(config))
    filled, left = {}, dict(source)
    for rule in wan_vae.rules(config, naming):
        assert rule.target not in filled
        filled[rule.target] = rule.transform.forward(left.pop(rule.source)) if rule.transform else left.pop(rule.source)
    assert not left
    values = [filled.pop("/".join(key.key for key in path)) for path, _ in leaves]
    assert not filled
    assert [value.shape for value in values] == [leaf.shape for _, leaf in leaves]
    return jax.tree.unflatten(tree, [jnp.asarray(value) for value in values])


def channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(x)).permute(0, 4, 1, 2, 3)


def channels_last(x: torch.Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 4, 1).numpy()


def assert_close(ours: jax.Array, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    np.testing.assert_array_less(np.abs(np.asarray(ours) - theirs).max(), BOUND * np.abs(theirs).max())


@functools.partial(jax.jit, static_argnums=1, static_argnames=("frames_per_chunk", "tile"))
def encode_raw(params: Params, config: vae.VAEConfig, video: jax.Array, **options: object) -> jax.Array:
    return vae.denormalize(config, vae.encode(params, config, video, **options))


@functools.partial(jax.jit, static_argnums=1, static_argnames=("frames_per_chunk", "tile"))
def decode_raw(params: Params, config: vae.VAEConfig, latents: jax.Array, **options: object) -> jax.Array:
    return vae.decode(params, config, vae.normalize(config, latents), **options)


if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    import time

    rng = np.random.default_rng(0)
    for name in CONFIGS:
        ref, config, params = models(name)
        for frames, h, w, b, chunk in [(1, 24, 40, 2, 1), (5, 24, 40, 1, 1), (13, 40, 24, 1, 2), (13, 16, 16, 2, 9)]:
            video = rng.uniform(-1, 1, (b, frames, h, w, 3)).astype(np.float32)
            with torch.no_grad():
                z = channels_last(ref.encode(channels_first(video)).latent_dist.mode())
            t = time.time()
            ours = np.asarray(encode_raw(params, config, video, frames_per_chunk=chunk))
            t = time.time() - t
            lat = rng.standard_normal(z.shape).astype(np.float32)
            with torch.no_grad():
                y = channels_last(ref.decode(channels_first(lat)).sample)
            t2 = time.time()
            oy = np.asarray(decode_raw(params, config, lat, frames_per_chunk=chunk))
            t2 = time.time() - t2
            print(
                name,
                frames,
                h,
                w,
                chunk,
                ours.shape,
                "enc",
                np.abs(ours - z).max() / np.abs(z).max(),
                f"{t:.1f}s",
                "dec",
                oy.shape,
                np.abs(oy - y).max() / np.abs(y).max(),
                f"{t2:.1f}s",
                "sat",
                (np.abs(y) >= 1).mean(),
            )
