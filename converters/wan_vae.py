"""The table of the Wan 2.1 VAE: diffusers' `AutoencoderKLWan` and the original `Wan2.1_VAE.pth`.

Ours groups layers by stage. diffusers numbers the encoder's layers in one flat list and the decoder's by block; the
original file numbers both flat. Kernels become channels-last, and 1×1×1 convolutions the `(n, k)` weights of linears.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from converters.rules import Rule, Transform
from sixbit_jax.errors import UserError
from sixbit_jax.models.vae_config import Stage, VAEConfig

NAMINGS = ("diffusers", "original")
MARKERS = {"diffusers": "decoder.mid_block.resnets.0.norm1.gamma", "original": "decoder.middle.0.residual.0.gamma"}
IGNORED: dict[str, tuple[str, ...]] = {"diffusers": (), "original": ()}

_CONV_3D = Transform("conv_3d", lambda x: x.transpose(2, 3, 4, 1, 0), lambda x, _: x.transpose(4, 3, 0, 1, 2))
_CONV_2D = Transform("conv_2d", lambda x: x.transpose(2, 3, 1, 0), lambda x, _: x.transpose(3, 2, 0, 1))
# The attention's convolutions and norm are of images, all others of videos.
_POINTWISE_2D = Transform("pointwise_2d", lambda x: x[..., 0, 0], lambda x, _: x[..., None, None])
_POINTWISE_3D = Transform("pointwise_3d", lambda x: x[..., 0, 0, 0], lambda x, _: x[..., None, None, None])
_SCALE_2D = Transform("scale_2d", lambda x: x[:, 0, 0], lambda x, _: x[:, None, None])
_SCALE_3D = Transform("scale_3d", lambda x: x[:, 0, 0, 0], lambda x, _: x[:, None, None, None])
# (n, c, 3, 1, 1) to (n, 3·c): a linear over three frames stacked on the channels.
_STACKED = Transform(
    "stacked",
    lambda x: x[..., 0, 0].transpose(0, 2, 1).reshape(x.shape[0], -1),
    lambda x, _: x.reshape(x.shape[0], 3, -1).transpose(0, 2, 1)[..., None, None],
)

# Ours, diffusers, original.
_Names: TypeAlias = tuple[str, str, str]
# Names of layers and the layout of their weights.
_Table: TypeAlias = tuple[tuple[_Names, Transform], ...]
_ENDS: _Table = (
    (("to_moments", "quant_conv", "conv1"), _POINTWISE_3D),
    (("from_latents", "post_quant_conv", "conv2"), _POINTWISE_3D),
)
_CODER: _Table = (
    (("conv_in", "conv_in", "conv1"), _CONV_3D),
    (("middle/attention/norm", "mid_block.attentions.0.norm", "middle.1.norm"), _SCALE_2D),
    (("middle/attention/qkv", "mid_block.attentions.0.to_qkv", "middle.1.to_qkv"), _POINTWISE_2D),
    (("middle/attention/out", "mid_block.attentions.0.proj", "middle.1.proj"), _POINTWISE_2D),
    (("norm_out", "norm_out", "head.0"), _SCALE_3D),
    (("conv_out", "conv_out", "head.2"), _CONV_3D),
)
_RESNET: _Table = (
    (("norm1", "norm1", "residual.0"), _SCALE_3D),
    (("conv1", "conv1", "residual.2"), _CONV_3D),
    (("norm2", "norm2", "residual.3"), _SCALE_3D),
    (("conv2", "conv2", "residual.6"), _CONV_3D),
)
_SHORTCUT: _Table = ((("shortcut", "conv_shortcut", "shortcut"), _POINTWISE_3D),)
_RESAMPLE: _Table = ((("conv", "resample.1", "resample.1"), _CONV_2D),)
_TIME: _Table = ((("time", "time_conv", "time_conv"), _STACKED),)


def rules(config: VAEConfig, naming: str) -> list[Rule]:
    """Every tensor of a checkpoint of this shape, in one of the two namings."""
    column = 1 + NAMINGS.index(naming)
    return [
        rule
        for place, table in _groups(config)
        for names, transform in table
        for rule in _layer_rules(place[0] + names[0], place[column] + names[column], transform)
    ]


def infer_config(shapes: Mapping[str, tuple[int, ...]], naming: str) -> VAEConfig:
    """Sizes from the tensors alone. The latents' statistics are in no tensor: they are those of the released VAE."""
    column = 1 + NAMINGS.index(naming)
    base_dim, channels = _shape(shapes, f"encoder.{_CODER[0][0][column]}.weight")[:2]
    z_dim = _shape(shapes, f"{_ENDS[1][0][column]}.weight")[0]
    _refuse_others(channels, z_dim)
    stages, halves_time = _encoder_stages(shapes, column)
    return VAEConfig(
        base_dim=base_dim,
        dim_mult=tuple(widths[-1] // base_dim for widths in stages),
        num_res_blocks=len(stages[0]),
        temporal_downsample=tuple(halves_time),
    )


def _layer_rules(target: str, source: str, transform: Transform) -> list[Rule]:
    if transform in (_SCALE_2D, _SCALE_3D):
        return [Rule(f"{source}.gamma", f"{target}/scale", transform=transform)]
    return [Rule(f"{source}.weight", f"{target}/weight", transform=transform), Rule(f"{source}.bias", f"{target}/bias")]


def _groups(config: VAEConfig) -> Iterator[tuple[_Names, _Table]]:
    """All layers of the model, a few at a time, with where they stand."""
    yield ("", "", ""), _ENDS
    for coder in ("encoder", "decoder"):
        yield (f"{coder}/", f"{coder}.", f"{coder}."), _CODER
        yield (f"{coder}/middle/before/", f"{coder}.mid_block.resnets.0.", f"{coder}.middle.0."), _RESNET
        yield (f"{coder}/middle/after/", f"{coder}.mid_block.resnets.1.", f"{coder}.middle.2."), _RESNET
    for index, (name, table) in enumerate(_stage_layers(config.down_stages(), config.num_res_blocks)):
        yield (f"encoder/down/{name}", f"encoder.down_blocks.{index}.", f"encoder.downsamples.{index}."), table
    for index, (name, table) in enumerate(_stage_layers(config.up_stages(), config.num_res_blocks + 1)):
        block = name.replace("resample", "upsamplers/0").replace("/", ".")
        yield (f"decoder/up/{name}", f"decoder.up_blocks.{block}", f"decoder.upsamples.{index}."), table


def _stage_layers(stages: tuple[Stage, ...], depth: int) -> Iterator[tuple[str, _Table]]:
    """Our names of the layers of all stages, in the order in which the flat lists number them."""
    for number, stage in enumerate(stages):
        for resnet in range(depth):
            widens = resnet == 0 and stage.in_dim != stage.out_dim
            yield f"{number}/resnets/{resnet}/", _RESNET + (_SHORTCUT if widens else ())
        if stage.resamples:
            yield f"{number}/resample/", _RESAMPLE + (_TIME if stage.resamples_time else ())


def _encoder_stages(shapes: Mapping[str, tuple[int, ...]], column: int) -> tuple[list[list[int]], list[bool]]:
    """Widths of the residual blocks of each stage, and whether the resampling behind it halves time."""
    prefix = ("encoder.down_blocks", "encoder.downsamples")[column - 1]
    widths: list[list[int]] = [[]]
    halves_time = []
    for index in itertools.count():
        conv = f"{prefix}.{index}.{_RESNET[1][0][column]}.weight"
        if conv in shapes:
            widths[-1].append(shapes[conv][0])
        elif f"{prefix}.{index}.resample.1.weight" in shapes and widths[-1]:
            halves_time.append(f"{prefix}.{index}.time_conv.weight" in shapes)
            widths.append([])
        else:
            break
    if not widths[-1]:
        raise UserError(f'VAE: the tensor "{conv}" is missing')
    return widths, halves_time


def _shape(shapes: Mapping[str, tuple[int, ...]], key: str) -> tuple[int, ...]:
    if key not in shapes:
        raise UserError(f'VAE: the tensor "{key}" is missing')
    return shapes[key]


def _refuse_others(channels: int, z_dim: int) -> None:
    if channels != 3:
        raise UserError(
            f"VAE: an encoder of {channels} channels is Wan 2.2's, which is not supported; use Wan 2.1's VAE"
        )
    if z_dim != VAEConfig.z_dim:
        raise UserError(
            f"VAE: the statistics of {z_dim}-channel latents are not in the file; convert a diffusers folder, "
            "whose vae/config.json has them"
        )
