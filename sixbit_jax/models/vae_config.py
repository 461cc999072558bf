"""The sizes of a Wan 2.1 VAE, where it halves time, and the statistics that normalise its latents."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sixbit_jax.errors import UserError

# Of the released Wan 2.1 VAE, in channel order; its original file does not carry them.
_WAN21_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
_WAN21_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


@dataclasses.dataclass(frozen=True)
class Stage:
    """The residual blocks at one resolution and the change of resolution behind them (none behind the last stage)."""

    in_dim: int
    out_dim: int
    resamples: bool
    resamples_time: bool


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """The defaults are the released Wan 2.1 VAE: 8× in space, 4× in time, 16 latent channels.

    `temporal_downsample[i]` says whether the encoder's stage `i` also halves time; the decoder mirrors it.

    >>> VAEConfig().spatial_scale, VAEConfig().temporal_scale
    (8, 4)
    """

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = _WAN21_MEAN
    latents_std: tuple[float, ...] = _WAN21_STD

    def __post_init__(self) -> None:
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise UserError(
                f"VAE config: temperal_downsample has {len(self.temporal_downsample)} entries; "
                f"dim_mult with {len(self.dim_mult)} needs {len(self.dim_mult) - 1}"
            )
        for name, values in (("latents_mean", self.latents_mean), ("latents_std", self.latents_std)):
            if len(values) != self.z_dim:
                raise UserError(f"VAE config: {name} has {len(values)} values; z_dim {self.z_dim} needs {self.z_dim}")

    @property
    def spatial_scale(self) -> int:
        """Pixels per latent, along height and along width."""
        return 2 ** (len(self.dim_mult) - 1)

    @property
    def temporal_scale(self) -> int:
        """Frames per latent frame, the first one apart."""
        return 2 ** sum(self.temporal_downsample)

    def down_stages(self) -> tuple[Stage, ...]:
        """The encoder's stages, in order."""
        widths = [self.base_dim * mult for mult in (1, *self.dim_mult)]
        resamples = [True] * len(self.temporal_downsample) + [False]
        halves_time = [*self.temporal_downsample, False]
        return tuple(map(Stage, widths[:-1], widths[1:], resamples, halves_time))

    def up_stages(self) -> tuple[Stage, ...]:
        """The decoder's stages, in order: each upsampling halves the width."""
        widths = [self.base_dim * mult for mult in reversed(self.dim_mult)]
        inputs = [widths[0], *(width // 2 for width in widths[:-1])]
        resamples = [True] * len(self.temporal_downsample) + [False]
        doubles_time = [*reversed(self.temporal_downsample), False]
        return tuple(map(Stage, inputs, widths, resamples, doubles_time))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "VAEConfig":
        """Read a diffusers `vae/config.json`; what it leaves out has the released model's value."""
        _refuse_wan22(values)
        _refuse_variants(values)
        given = {field: _freeze(values[key]) for field, key in _KEYS.items() if key in values}
        config = cls(**given)
        _refuse_other_scales(values, config)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The same facts under diffusers' keys, ready for JSON."""
        return {
            "_class_name": "AutoencoderKLWan",
            **{key: _thaw(getattr(self, field)) for field, key in _KEYS.items()},
            "attn_scales": [],
            "dropout": 0.0,
        }


# Our field -> diffusers' key ("temperal" is its spelling).
_KEYS = {
    "base_dim": "base_dim",
    "z_dim": "z_dim",
    "dim_mult": "dim_mult",
    "num_res_blocks": "num_res_blocks",
    "temporal_downsample": "temperal_downsample",
    "latents_mean": "latents_mean",
    "latents_std": "latents_std",
}


def _refuse_wan22(values: Mapping[str, Any]) -> None:
    for key in ("is_residual", "patch_size"):
        if values.get(key):
            raise UserError(f"VAE config: {key} {values[key]} is Wan 2.2's VAE, which is not supported; use Wan 2.1's")


def _refuse_variants(values: Mapping[str, Any]) -> None:
    base_dim = values.get("base_dim", VAEConfig.base_dim)
    supported = {"attn_scales": [], "in_channels": 3, "out_channels": 3, "decoder_base_dim": base_dim}
    for key, only in supported.items():
        value = _thaw(values.get(key))
        if value is not None and value != only:
            raise UserError(f"VAE config: {key} {value} is not supported; the only value is {only}")


def _refuse_other_scales(values: Mapping[str, Any], config: VAEConfig) -> None:
    built = {"scale_factor_spatial": config.spatial_scale, "scale_factor_temporal": config.temporal_scale}
    for key, scale in built.items():
        if values.get(key) not in (None, scale):
            raise UserError(f"VAE config: {key} is {values[key]}, but its stages make {scale}")


def _freeze(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _thaw(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
