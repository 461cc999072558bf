"""The parameters of a Wan DiT: names, shapes, initial values. The mathematics is in `wan.py`."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sixbit_jax.models.layers import DType, Linear, Norm, abstract, to_tree
from sixbit_jax.models.wan_config import WanConfig
from sixbit_jax.shapes import Params


def _table(rngs: nnx.Rngs, shape: tuple[int, ...]) -> nnx.Param:
    """A modulation table: small values around zero, always f32."""
    return nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) * shape[-1] ** -0.5)


class Embedding(nnx.Module):
    """Two linears with a nonlinearity between them: the time and text embeddings."""

    def __init__(self, k: int, hidden: int, n: int, *, rngs: nnx.Rngs, dtype: DType):
        self.linear_in = Linear(k, hidden, rngs=rngs, dtype=dtype)
        self.linear_out = Linear(hidden, n, rngs=rngs, dtype=dtype)


class ImageEmbedding(nnx.Module):
    """CLIP tokens to model width, with norms on both sides; two images at once add a position table."""

    def __init__(self, config: WanConfig, image_dim: int, *, rngs: nnx.Rngs, dtype: DType):
        self.norm_in = Norm(image_dim, bias=True)
        self.mlp = Embedding(image_dim, image_dim, config.dim, rngs=rngs, dtype=dtype)
        self.norm_out = Norm(config.dim, bias=True)
        if config.image_positions is not None:
            self.positions = nnx.Param(jnp.zeros((config.image_positions, image_dim), jnp.float32))


class SelfAttention(nnx.Module):
    def __init__(self, config: WanConfig, *, rngs: nnx.Rngs, dtype: DType):
        d, stack = config.dim, (config.num_layers,)
        self.qkv = Linear(d, 3 * d, rngs=rngs, dtype=dtype, stack=stack)
        self.out = Linear(d, d, rngs=rngs, dtype=dtype, stack=stack)
        self.norm_q = Norm(d, stack=stack)
        self.norm_k = Norm(d, stack=stack)


class CrossAttention(nnx.Module):
    """Queries from the video.

    Keys and values of the prompt, and of the image when there is one, are one linear each.
    """

    def __init__(self, config: WanConfig, *, rngs: nnx.Rngs, dtype: DType):
        d, stack = config.dim, (config.num_layers,)
        self.q = Linear(d, d, rngs=rngs, dtype=dtype, stack=stack)
        self.kv = Linear(d, 2 * d, rngs=rngs, dtype=dtype, stack=stack)
        self.out = Linear(d, d, rngs=rngs, dtype=dtype, stack=stack)
        self.norm_q = Norm(d, stack=stack)
        self.norm_k = Norm(d, stack=stack)
        if config.image_dim is not None:
            self.image_kv = Linear(d, 2 * d, rngs=rngs, dtype=dtype, stack=stack)
            self.norm_image_k = Norm(d, stack=stack)


class Blocks(nnx.Module):
    """All layers at once, stacked on the leading axis."""

    def __init__(self, config: WanConfig, *, rngs: nnx.Rngs, dtype: DType):
        d, stack = config.dim, (config.num_layers,)
        self.modulation = _table(rngs, (*stack, 6, d))
        self.self_attention = SelfAttention(config, rngs=rngs, dtype=dtype)
        self.cross_norm = Norm(d, stack=stack, bias=True)
        self.cross_attention = CrossAttention(config, rngs=rngs, dtype=dtype)
        self.ffn_in = Linear(d, config.ffn_dim, rngs=rngs, dtype=dtype, stack=stack)
        self.ffn_out = Linear(config.ffn_dim, d, rngs=rngs, dtype=dtype, stack=stack)


class WanTransformer(nnx.Module):
    """The whole DiT.

    Norms, modulation tables and the time embedding stay f32 whatever `dtype` is, as in the reference.
    """

    def __init__(self, config: WanConfig, *, rngs: nnx.Rngs, dtype: DType = jnp.float32):
        d = config.dim
        self.patch_embedding = Linear(config.patch_volume * config.in_channels, d, rngs=rngs, dtype=dtype)
        self.time_embedding = Embedding(config.freq_dim, d, d, rngs=rngs, dtype=jnp.float32)
        self.time_projection = Linear(d, 6 * d, rngs=rngs, dtype=dtype)
        self.text_embedding = Embedding(config.text_dim, d, d, rngs=rngs, dtype=dtype)
        if config.image_dim is not None:
            self.image_embedding = ImageEmbedding(config, config.image_dim, rngs=rngs, dtype=dtype)
        self.blocks = Blocks(config, rngs=rngs, dtype=dtype)
        self.head = Linear(d, config.patch_volume * config.out_channels, rngs=rngs, dtype=dtype)
        self.head_modulation = _table(rngs, (2, d))


def init_params(config: WanConfig, key: Any, dtype: DType = jnp.float32) -> Params:
    """Random parameters: what training starts from."""
    return to_tree(WanTransformer(config, rngs=nnx.Rngs(key), dtype=dtype))


def abstract_params(config: WanConfig, dtype: DType = jnp.float32) -> Params:
    """Shapes and dtypes of the parameters, without making them."""
    return abstract(WanTransformer, config, dtype)
