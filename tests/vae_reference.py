"""Small random `AutoencoderKLWan`s and the same weights in our layout, for the parity tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import AutoencoderKLWan

from converters import wan_vae
from sixbit_jax.models import vae
from sixbit_jax.shapes import Params

CONFIGS = {
    "as released": {"base_dim": 8},
    "four latent channels": {
        "base_dim": 16,
        "z_dim": 4,
        "num_res_blocks": 1,
        "latents_mean": [0.5, -1.0, 0.25, 2.0],
        "latents_std": [2.0, 0.5, 1.5, 3.0],
    },
    "two resamplings": {
        "base_dim": 8,
        "dim_mult": [1, 3, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
        "scale_factor_spatial": 4,
    },
    "one resampling": {
        "base_dim": 8,
        "dim_mult": [1, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [True],
        "scale_factor_spatial": 2,
        "scale_factor_temporal": 2,
    },
}


@functools.cache
def reference(name: str) -> AutoencoderKLWan:
    """Every parameter away from its neutral value; an output that is not clipped, so that all of it is compared."""
    torch.manual_seed(0)
    model = AutoencoderKLWan(**CONFIGS[name]).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    model.decoder.conv_out.weight.mul_(0.1)
    return model


def config(name: str) -> vae.VAEConfig:
    return vae.VAEConfig.from_dict(reference(name).config)


@functools.cache
def params(name: str) -> Params:
    return fill(config(name), tensors(name), "diffusers")


def tensors(name: str) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in reference(name).state_dict().items()}


def fill(config: vae.VAEConfig, source: dict[str, np.ndarray], naming: str) -> Params:
    """Apply a table by hand: every source key used once, every parameter filled once and with its shape."""
    leaves, tree = jax.tree.flatten_with_path(vae.abstract_params(config))
    filled, left = {}, dict(source)
    for rule in wan_vae.rules(config, naming):
        value = left.pop(rule.source)
        assert rule.target not in filled
        filled[rule.target] = rule.transform.forward(value) if rule.transform else value
    assert not left
    values = [filled.pop("/".join(key.key for key in path)) for path, _ in leaves]
    assert not filled
    assert [value.shape for value in values] == [leaf.shape for _, leaf in leaves]
    return jax.tree.unflatten(tree, [jnp.asarray(value) for value in values])


def encode(name: str, video: np.ndarray) -> np.ndarray:
    """The reference's posterior mean of a channels-last video."""
    return _channels_last(reference(name).encode(_channels_first(video)).latent_dist.mode())


def decode(name: str, latents: np.ndarray) -> np.ndarray:
    return _channels_last(reference(name).decode(_channels_first(latents)).sample)


def _channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).permute(0, 4, 1, 2, 3)


def _channels_last(x: torch.Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 4, 1).numpy()
