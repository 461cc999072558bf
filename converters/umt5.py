"""Tables for the UMT5 encoder: transformers' `UMT5EncoderModel` and the original Wan repository's `.pth`."""

import itertools
from collections.abc import Mapping

from converters.rules import Rule
from sixbit_jax.errors import UserError
from sixbit_jax.models.umt5 import UMT5Config

NAMINGS = ("diffusers", "original")
MARKERS = {"diffusers": "shared.weight", "original": "token_embedding.weight"}
# The tied copy of the embedding, and the tokenizer that single files of the community carry as a tensor.
IGNORED: dict[str, tuple[str, ...]] = {"diffusers": ("encoder.embed_tokens.weight", "spiece_model"), "original": ()}

_EMBEDDING = {"diffusers": "shared", "original": "token_embedding"}
_NORM = {"diffusers": "encoder.final_layer_norm", "original": "norm"}
_BLOCK = {"diffusers": "encoder.block.{l}.", "original": "blocks.{l}."}

# Our name, then the sources within a block that are concatenated into it. In both projects the first of the two
# feed-forward inputs goes through the GELU.
_BLOCK_TENSORS: dict[str, dict[str, tuple[str, ...]]] = {
    "diffusers": {
        "attention_norm/scale": ("layer.0.layer_norm",),
        "attention/qkv/weight": ("layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v"),
        "attention/out/weight": ("layer.0.SelfAttention.o",),
        "attention/position_bias": ("layer.0.SelfAttention.relative_attention_bias",),
        "ffn_norm/scale": ("layer.1.layer_norm",),
        "ffn_in/weight": ("layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1"),
        "ffn_out/weight": ("layer.1.DenseReluDense.wo",),
    },
    "original": {
        "attention_norm/scale": ("norm1",),
        "attention/qkv/weight": ("attn.q", "attn.k", "attn.v"),
        "attention/out/weight": ("attn.o",),
        "attention/position_bias": ("pos_embedding.embedding",),
        "ffn_norm/scale": ("norm2",),
        "ffn_in/weight": ("ffn.gate.0", "ffn.fc1"),
        "ffn_out/weight": ("ffn.fc2",),
    },
}


def rules(config: UMT5Config, naming: str) -> list[Rule]:
    """Every tensor of an encoder of this size, in one of the two namings."""
    table = [
        Rule(f"{_EMBEDDING[naming]}.weight", "embedding/weight"),
        Rule(f"{_NORM[naming]}.weight", "norm/scale"),
    ]
    for layer in range(config.num_layers):
        for target in _BLOCK_TENSORS[naming]:
            sources = _block_keys(naming, layer, target)
            for index, source in enumerate(sources):
                table.append(Rule(source, f"blocks/{target}", layer, (index, len(sources))))
    return table


def infer_config(shapes: Mapping[str, tuple[int, ...]], naming: str) -> UMT5Config:
    """Sizes from the tensors alone. `max_distance` leaves no trace in them and takes the value all UMT5s share."""
    vocab_size, d_model = _shape(shapes, f"{_EMBEDDING[naming]}.weight")
    num_buckets, num_heads = _shape(shapes, _block_keys(naming, 0, "attention/position_bias")[0])
    inner_dim, _ = _shape(shapes, _block_keys(naming, 0, "attention/qkv/weight")[0])
    ffn_dim, _ = _shape(shapes, _block_keys(naming, 0, "ffn_in/weight")[0])
    layers = itertools.takewhile(lambda l: _block_keys(naming, l, "ffn_out/weight")[0] in shapes, itertools.count())
    return UMT5Config(
        vocab_size=vocab_size,
        d_model=d_model,
        num_layers=len(list(layers)),
        num_heads=num_heads,
        ffn_dim=ffn_dim,
        head_dim=inner_dim // num_heads,
        num_buckets=num_buckets,
    )


def _block_keys(naming: str, layer: int, target: str) -> list[str]:
    return [f"{_BLOCK[naming].format(l=layer)}{source}.weight" for source in _BLOCK_TENSORS[naming][target]]


def _shape(shapes: Mapping[str, tuple[int, ...]], key: str) -> tuple[int, ...]:
    if key not in shapes:
        raise UserError(f'text encoder: "{key}" is missing')
    return shapes[key]
