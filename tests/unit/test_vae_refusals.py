"""What the VAE does not support, and sizes that do not fit, are refused in one line."""

import jax.numpy as jnp
import pytest

from sixbit_jax.errors import UserError
from sixbit_jax.models import vae

RELEASED = {
    "_class_name": "AutoencoderKLWan",
    "attn_scales": [],
    "base_dim": 96,
    "dim_mult": [1, 2, 4, 4],
    "dropout": 0.0,
    "latents_mean": list(vae.VAEConfig.latents_mean),
    "latents_std": list(vae.VAEConfig.latents_std),
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "z_dim": 16,
}


def test_released_config_is_the_default() -> None:
    config = vae.VAEConfig.from_dict(RELEASED)
    assert config == vae.VAEConfig()
    assert (config.spatial_scale, config.temporal_scale) == (8, 4)
    assert hash(config) == hash(vae.VAEConfig())


def test_config_round_trip() -> None:
    config = vae.VAEConfig(base_dim=8, z_dim=1, latents_mean=(0.5,), latents_std=(2.0,), num_res_blocks=1)
    assert vae.VAEConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_residual": True}, "Wan 2.2"),
        ({"patch_size": 2}, "Wan 2.2"),
        ({"attn_scales": [0.5]}, "attn_scales"),
        ({"decoder_base_dim": 256}, "decoder_base_dim 256 is not supported; the only value is 96"),
        ({"out_channels": 12}, "out_channels"),
        ({"z_dim": 4}, "latents_mean has 16 values; z_dim 4 needs 4"),
        ({"dim_mult": [1, 2]}, "temperal_downsample has 3 entries; dim_mult with 2 needs 1"),
        ({"scale_factor_spatial": 16}, "scale_factor_spatial is 16, but its stages make 8"),
    ],
)
def test_other_models_are_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        vae.VAEConfig.from_dict(RELEASED | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 4, 16, 16, 3), r"4 frames are not 4n\+1; the nearest is 5"),
        ((1, 2, 16, 16, 3), r"2 frames are not 4n\+1; the nearest is 1"),
        ((1, 5, 20, 16, 3), "height 20 is not a multiple of 8; the nearest is 16"),
        ((1, 5, 16, 3, 3), "width 3 is not a multiple of 8; the nearest is 8"),
    ],
)
def test_sizes_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        vae.encode({}, vae.VAEConfig(), jnp.zeros(shape))


def test_chunks_of_nothing() -> None:
    with pytest.raises(UserError, match="frames_per_chunk 0"):
        vae.decode({}, vae.VAEConfig(), jnp.zeros((1, 2, 2, 2, 16)), frames_per_chunk=0)


@pytest.mark.parametrize("stride", [0, 257])
def test_tiles_must_meet(stride: int) -> None:
    with pytest.raises(UserError, match="use a stride of 1 to 256"):
        vae.Tiling(stride=(stride, 192))


def test_tiles_must_be_whole_latents() -> None:
    with pytest.raises(UserError, match=r"size \(100, 256\) is not a multiple of 8; the nearest is \(96, 256\)"):
        vae.Tiling((100, 256), (96, 192)).shrink(8)
