"""Encoder and decoder as functions of a piece of video and what they remember of the pieces before it.

`Past` mirrors the parameter tree: a nested dict with the last frames of every causal layer, or `None` in front of the
first frame.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sixbit_jax.linear import linear
from sixbit_jax.models.vae_layers import (
    Video,
    attention,
    causal_conv,
    downsample_space,
    downsample_time,
    norm_silu,
    upsample_space,
    upsample_time,
)
from sixbit_jax.shapes import Params

Past: TypeAlias = dict[str, Any] | None
Coded: TypeAlias = Float[Array, "b u y x n"]
Step: TypeAlias = Callable[[Video, Past], tuple[Coded, Past]]


def encode_piece(params: Params, x: Video, past: Past) -> tuple[Coded, Past]:
    """Frames to features of the latent grid: the first frame to one, later `temporal_scale` frames to one."""
    new: dict[str, Any] = {}
    x, new["conv_in"] = causal_conv(params["conv_in"], x, _of(past, "conv_in"))
    x, new["down"] = _chain(_down, params["down"], x, _of(past, "down"))
    x, new["middle"] = _middle(params["middle"], x, _of(past, "middle"))
    x = norm_silu(params["norm_out"], x)
    x, new["conv_out"] = causal_conv(params["conv_out"], x, _of(past, "conv_out"))
    return x, new


def decode_piece(params: Params, x: Video, past: Past) -> tuple[Coded, Past]:
    """Features of the latent grid to frames: the first to one frame, later ones to `temporal_scale` each."""
    new: dict[str, Any] = {}
    x, new["conv_in"] = causal_conv(params["conv_in"], x, _of(past, "conv_in"))
    x, new["middle"] = _middle(params["middle"], x, _of(past, "middle"))
    x, new["up"] = _chain(_up, params["up"], x, _of(past, "up"))
    x = norm_silu(params["norm_out"], x)
    x, new["conv_out"] = causal_conv(params["conv_out"], x, _of(past, "conv_out"))
    return x, new


def stream(step: Step, x: Video, length: int) -> Coded:
    """Run `step` along the time axis: the first frame alone, a scan over pieces of `length` frames, then the rest."""
    head, past = step(x[:, :1], None)
    rest = x[:, 1:]
    scanned = rest.shape[1] // length * length
    outputs = [head]
    if scanned:
        past, body = lax.scan(lambda past, piece: step(piece, past)[::-1], past, _split(rest[:, :scanned], length))
        outputs.append(_join(body))
    if scanned < rest.shape[1]:
        outputs.append(step(rest[:, scanned:], past)[0])
    return jnp.concatenate(outputs, axis=1)


def _resnet(params: Params, x: Video, past: Past) -> tuple[Coded, Past]:
    new: dict[str, Any] = {}
    y = norm_silu(params["norm1"], x)
    y, new["conv1"] = causal_conv(params["conv1"], y, _of(past, "conv1"))
    y = norm_silu(params["norm2"], y)
    y, new["conv2"] = causal_conv(params["conv2"], y, _of(past, "conv2"))
    if "shortcut" in params:
        x = linear(x, params["shortcut"]["weight"], params["shortcut"]["bias"])
    return x + y, new


def _middle(params: Params, x: Video, past: Past) -> tuple[Coded, Past]:
    new: dict[str, Any] = {}
    x, new["before"] = _resnet(params["before"], x, _of(past, "before"))
    x = attention(params["attention"], x)
    x, new["after"] = _resnet(params["after"], x, _of(past, "after"))
    return x, new


def _down(params: Params, x: Video, past: Past) -> tuple[Coded, Past]:
    new: dict[str, Any] = {}
    x, new["resnets"] = _chain(_resnet, params["resnets"], x, _of(past, "resnets"))
    if "resample" not in params:
        return x, new
    x = downsample_space(params["resample"]["conv"], x)
    if "time" in params["resample"]:
        x, new["time"] = downsample_time(params["resample"]["time"], x, _of(past, "time"))
    return x, new


def _up(params: Params, x: Video, past: Past) -> tuple[Coded, Past]:
    new: dict[str, Any] = {}
    x, new["resnets"] = _chain(_resnet, params["resnets"], x, _of(past, "resnets"))
    if "resample" not in params:
        return x, new
    if "time" in params["resample"]:
        x, new["time"] = upsample_time(params["resample"]["time"], x, _of(past, "time"))
    return upsample_space(params["resample"]["conv"], x), new


def _chain(block: Callable[..., tuple[Coded, Past]], params: Params, x: Video, past: Past) -> tuple[Coded, Past]:
    """Blocks "0", "1", … one after another."""
    new = {}
    for index in map(str, range(len(params))):
        x, new[index] = block(params[index], x, _of(past, index))
    return x, new


def _of(past: Past, name: str) -> Any:
    return None if past is None else past[name]


def _split(x: Video, length: int) -> Float[Array, "pieces b length h w c"]:
    b, t, h, w, c = x.shape
    return jnp.moveaxis(x.reshape(b, t // length, length, h, w, c), 1, 0)


def _join(pieces: Float[Array, "pieces b length h w c"]) -> Video:
    count, b, t, h, w, c = pieces.shape
    return jnp.moveaxis(pieces, 0, 1).reshape(b, count * t, h, w, c)
