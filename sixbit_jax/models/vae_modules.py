"""The parameters of the VAE: names, shapes, initial values. The mathematics is in `vae_layers.py`, `vae_coders.py`."""

import itertools

import jax.numpy as jnp
from flax import nnx

from sixbit_jax.models.layers import DType, Linear, Norm, abstract, normal, to_tree
from sixbit_jax.models.vae_config import Stage, VAEConfig
from sixbit_jax.shapes import Array, Params


class Conv(nnx.Module):
    """`weight (*kernel, c, n)` and `bias (n,)`."""

    def __init__(self, kernel: tuple[int, ...], c: int, n: int, *, rngs: nnx.Rngs, dtype: DType):
        taps = 1
        for size in kernel:
            taps *= size
        self.weight = nnx.Param(normal(rngs, (*kernel, c, n), taps * c, dtype))
        self.bias = nnx.Param(jnp.zeros((n,), dtype))


class Resnet(nnx.Module):
    def __init__(self, c: int, n: int, *, rngs: nnx.Rngs, dtype: DType):
        self.norm1 = Norm(c)
        self.conv1 = Conv((3, 3, 3), c, n, rngs=rngs, dtype=dtype)
        self.norm2 = Norm(n)
        self.conv2 = Conv((3, 3, 3), n, n, rngs=rngs, dtype=dtype)
        if c != n:
            self.shortcut = Linear(c, n, rngs=rngs, dtype=dtype)


class Attention(nnx.Module):
    def __init__(self, c: int, *, rngs: nnx.Rngs, dtype: DType):
        self.norm = Norm(c)
        self.qkv = Linear(c, 3 * c, rngs=rngs, dtype=dtype)
        self.out = Linear(c, c, rngs=rngs, dtype=dtype)


class Middle(nnx.Module):
    def __init__(self, c: int, *, rngs: nnx.Rngs, dtype: DType):
        self.before = Resnet(c, c, rngs=rngs, dtype=dtype)
        self.attention = Attention(c, rngs=rngs, dtype=dtype)
        self.after = Resnet(c, c, rngs=rngs, dtype=dtype)


class Resample(nnx.Module):
    """`conv` changes height and width; `time`, a linear over three stacked frames, the number of frames."""

    def __init__(self, c: int, n: int, time: tuple[int, int] | None, *, rngs: nnx.Rngs, dtype: DType):
        self.conv = Conv((3, 3), c, n, rngs=rngs, dtype=dtype)
        if time is not None:
            self.time = Linear(*time, rngs=rngs, dtype=dtype)


class Level(nnx.Module):
    """A stage's residual blocks and its resampling."""

    def __init__(self, stage: Stage, depth: int, resample: Resample | None, *, rngs: nnx.Rngs, dtype: DType):
        widths = [stage.in_dim] + [stage.out_dim] * depth
        self.resnets = nnx.List([Resnet(c, n, rngs=rngs, dtype=dtype) for c, n in itertools.pairwise(widths)])
        if resample is not None:
            self.resample = resample


class Encoder(nnx.Module):
    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs, dtype: DType):
        last = config.down_stages()[-1].out_dim
        self.conv_in = Conv((3, 3, 3), 3, config.base_dim, rngs=rngs, dtype=dtype)
        self.down = nnx.List([_down(stage, config, rngs, dtype) for stage in config.down_stages()])
        self.middle = Middle(last, rngs=rngs, dtype=dtype)
        self.norm_out = Norm(last)
        self.conv_out = Conv((3, 3, 3), last, 2 * config.z_dim, rngs=rngs, dtype=dtype)


class Decoder(nnx.Module):
    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs, dtype: DType):
        first, last = config.up_stages()[0].in_dim, config.up_stages()[-1].out_dim
        self.conv_in = Conv((3, 3, 3), config.z_dim, first, rngs=rngs, dtype=dtype)
        self.middle = Middle(first, rngs=rngs, dtype=dtype)
        self.up = nnx.List([_up(stage, config, rngs, dtype) for stage in config.up_stages()])
        self.norm_out = Norm(last)
        self.conv_out = Conv((3, 3, 3), last, 3, rngs=rngs, dtype=dtype)


class VAE(nnx.Module):
    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs, dtype: DType):
        self.encoder = Encoder(config, rngs=rngs, dtype=dtype)
        self.to_moments = Linear(2 * config.z_dim, 2 * config.z_dim, rngs=rngs, dtype=dtype)
        self.from_latents = Linear(config.z_dim, config.z_dim, rngs=rngs, dtype=dtype)
        self.decoder = Decoder(config, rngs=rngs, dtype=dtype)


def init_params(config: VAEConfig, key: Array, dtype: DType = jnp.float32) -> Params:
    """Random parameters (norm scales stay f32)."""
    return to_tree(VAE(config, rngs=nnx.Rngs(key), dtype=dtype))


def abstract_params(config: VAEConfig, dtype: DType = jnp.float32) -> Params:
    """Shapes and dtypes of the parameters; no arrays are made."""
    return abstract(VAE, config, dtype)


def _down(stage: Stage, config: VAEConfig, rngs: nnx.Rngs, dtype: DType) -> Level:
    n = stage.out_dim
    time = (3 * n, n) if stage.resamples_time else None
    resample = Resample(n, n, time, rngs=rngs, dtype=dtype) if stage.resamples else None
    return Level(stage, config.num_res_blocks, resample, rngs=rngs, dtype=dtype)


def _up(stage: Stage, config: VAEConfig, rngs: nnx.Rngs, dtype: DType) -> Level:
    n = stage.out_dim
    time = (3 * n, 2 * n) if stage.resamples_time else None
    resample = Resample(n, n // 2, time, rngs=rngs, dtype=dtype) if stage.resamples else None
    return Level(stage, config.num_res_blocks + 1, resample, rngs=rngs, dtype=dtype)
