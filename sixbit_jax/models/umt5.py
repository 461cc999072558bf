"""The UMT5 text encoder as plain functions over a parameter tree.

    token ids, mask --encode--> (b, p, d), read by the DiT's text embedding

Chung et al., "UniMax: Fairer and More Effective Language Sampling for Large-Scale Multilingual Pretraining", arXiv
2304.09151. What sets it apart from T5: every layer has its own table of relative position biases. As in T5, scores are
not divided by √c, linears have no bias and norms only scale.

In bf16 the residual stream stays f32 (the reference rounds it after every add), as do norms, softmax and the gate.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from sixbit_jax.errors import UserError
from sixbit_jax.linear import linear
from sixbit_jax.models.layers import DType, Linear, Norm, abstract, normal, to_tree
from sixbit_jax.models.norms import rms_norm
from sixbit_jax.shapes import Params

_TRANSFORMERS_NAMES = {
    "head_dim": "d_kv",
    "ffn_dim": "d_ff",
    "num_buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
    "eps": "layer_norm_epsilon",
}
# Values the model has no code for: anything else in these keys is another architecture.
_FIXED = {"model_type": "umt5", "feed_forward_proj": "gated-gelu"}


@dataclasses.dataclass(frozen=True)
class UMT5Config:
    """Sizes of an encoder. The defaults are facts of the architecture, not of a size."""

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    ffn_dim: int
    head_dim: int = 64
    num_buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6

    @property
    def inner_dim(self) -> int:
        return self.num_heads * self.head_dim

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "UMT5Config":
        """Read the keys of transformers' `config.json`."""
        for key, supported in _FIXED.items():
            if data.get(key, supported) != supported:
                raise UserError(f"text encoder config: {key}={data[key]!r} is not supported (supported: {supported!r})")
        values = {}
        for field in dataclasses.fields(cls):
            key = _TRANSFORMERS_NAMES.get(field.name, field.name)
            if key in data:
                values[field.name] = data[key]
            elif field.default is dataclasses.MISSING:
                raise UserError(f'text encoder config: "{key}" is missing')
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Transformers' keys, which `from_dict` and `UMT5EncoderModel` read back."""
        values = {_TRANSFORMERS_NAMES.get(key, key): value for key, value in dataclasses.asdict(self).items()}
        return values | _FIXED | {"architectures": ["UMT5EncoderModel"]}


UMT5_XXL = UMT5Config(vocab_size=256384, d_model=4096, num_layers=24, num_heads=64, ffn_dim=10240)


class Embedding(nnx.Module):
    """One row per token."""

    def __init__(self, config: UMT5Config, *, rngs: nnx.Rngs, dtype: DType):
        self.weight = nnx.Param(normal(rngs, (config.vocab_size, config.d_model), 1, dtype))


class SelfAttention(nnx.Module):
    """`position_bias (l, buckets, a)` is f32: it is added to f32 scores."""

    def __init__(self, config: UMT5Config, *, rngs: nnx.Rngs, dtype: DType):
        d, inner, stack = config.d_model, config.inner_dim, (config.num_layers,)
        self.qkv = Linear(d, 3 * inner, rngs=rngs, dtype=dtype, stack=stack, bias=False)
        self.out = Linear(inner, d, rngs=rngs, dtype=dtype, stack=stack, bias=False)
        shape = (*stack, config.num_buckets, config.num_heads)
        self.position_bias = nnx.Param(normal(rngs, shape, d, jnp.float32))


class Blocks(nnx.Module):
    """All layers at once, stacked on the leading axis.

    `ffn_in` holds the rows of the gate, then those of what it gates.
    """

    def __init__(self, config: UMT5Config, *, rngs: nnx.Rngs, dtype: DType):
        d, f, stack = config.d_model, config.ffn_dim, (config.num_layers,)
        self.attention_norm = Norm(d, stack=stack)
        self.attention = SelfAttention(config, rngs=rngs, dtype=dtype)
        self.ffn_norm = Norm(d, stack=stack)
        self.ffn_in = Linear(d, 2 * f, rngs=rngs, dtype=dtype, stack=stack, bias=False)
        self.ffn_out = Linear(f, d, rngs=rngs, dtype=dtype, stack=stack, bias=False)


class UMT5Encoder(nnx.Module):
    """The whole encoder."""

    def __init__(self, config: UMT5Config, *, rngs: nnx.Rngs, dtype: DType = jnp.float32):
        self.embedding = Embedding(config, rngs=rngs, dtype=dtype)
        self.blocks = Blocks(config, rngs=rngs, dtype=dtype)
        self.norm = Norm(config.d_model)


def init_params(config: UMT5Config, key: Any, dtype: DType = jnp.float32) -> Params:
    """Random parameters."""
    return to_tree(UMT5Encoder(config, rngs=nnx.Rngs(key), dtype=dtype))


def abstract_params(config: UMT5Config, dtype: DType = jnp.float32) -> Params:
    """Shapes and dtypes of the parameters, without making them."""
    return abstract(UMT5Encoder, config, dtype)


def encode(
    params: Params, config: UMT5Config, ids: Int[Array, "b p"], mask: Int[Array, "b p"]
) -> Float[Array, "b p d"]:
    """The last hidden states, in f32. Tokens with mask 0 are read by nobody; their own rows mean nothing."""
    buckets = jnp.asarray(position_buckets(config, ids.shape[1]))
    table = params["embedding"]["weight"]

    def layer(x: Array, p: Params) -> tuple[Array, None]:
        return block(p, config, x, buckets, mask, table.dtype), None

    x, _ = lax.scan(layer, table[ids].astype(jnp.float32), params["blocks"])
    return rms_norm(x, config.eps, params["norm"]["scale"])


def block(
    p: Params,
    config: UMT5Config,
    x: Float[Array, "b p d"],
    buckets: Int[Array, "p p"],
    mask: Int[Array, "b p"],
    dtype: DType,
) -> Float[Array, "b p d"]:
    """One layer; `x` is the f32 residual stream, `dtype` that of everything between two of its additions."""
    y = rms_norm(x, config.eps, p["attention_norm"]["scale"]).astype(dtype)
    x = x + attention(p["attention"], config, y, buckets, mask).astype(jnp.float32)
    y = rms_norm(x, config.eps, p["ffn_norm"]["scale"]).astype(dtype)
    return x + feed_forward(p, y).astype(jnp.float32)


def attention(
    p: Params, config: UMT5Config, x: Float[Array, "b p d"], buckets: Int[Array, "p p"], mask: Int[Array, "b p"]
) -> Float[Array, "b p d"]:
    """Bidirectional self-attention with a learned bias for each distance and head, and no scale."""
    batch, tokens, _ = x.shape
    qkv = linear(x, p["qkv"]["weight"]).reshape(batch, tokens, 3, config.num_heads, config.head_dim)
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    # Without HIGHEST a GPU rounds f32 operands to tf32.
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT
    product = functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)
    scores = product("bqac,bkac->baqk", q, k) + jnp.moveaxis(p["position_bias"][buckets], -1, 0)[None]
    # A finite floor: a prompt without a single token averages all rows, as the reference does, instead of being NaN.
    scores = jnp.where(mask[:, None, None] > 0, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
    out = product("baqk,bkac->bqac", weights, v).astype(x.dtype)
    return linear(out.reshape(batch, tokens, config.inner_dim), p["out"]["weight"])


def feed_forward(p: Params, x: Float[Array, "b p d"]) -> Float[Array, "b p d"]:
    """tanh-GELU of the gate times the rest."""
    gate, rest = jnp.split(linear(x, p["ffn_in"]["weight"]).astype(jnp.float32), 2, axis=-1)
    return linear((jax.nn.gelu(gate, approximate=True) * rest).astype(x.dtype), p["ffn_out"]["weight"])


def position_buckets(config: UMT5Config, tokens: int) -> Int[np.ndarray, "p p"]:
    """Which row of the bias table query q and key k use.

    Half of the buckets are for keys behind the query. Of each half, the first half has one bucket per distance and the
    second grows with the logarithm up to `max_distance`. f32 throughout: the logarithm decides between two buckets.
    """
    offset = np.arange(tokens)[None] - np.arange(tokens)[:, None]
    distance = np.abs(offset)
    half = config.num_buckets // 2
    exact = half // 2
    octaves = np.log(np.maximum(distance, exact).astype(np.float32) / exact) / np.log(config.max_distance / exact)
    far = np.minimum(exact + (octaves.astype(np.float32) * (half - exact)).astype(np.int32), half - 1)
    return (np.where(distance < exact, distance, far) + half * (offset > 0)).astype(np.int32)
