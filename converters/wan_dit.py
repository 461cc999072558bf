"""Tables for the Wan DiT: diffusers' `WanTransformer3DModel` and the original repository's `WanModel`."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from converters.rules import Rule, Transform
from sixbit_jax.models.wan_config import WanConfig

NAMINGS = ("diffusers", "original")
MARKERS = {"diffusers": "condition_embedder.time_proj.weight", "original": "time_projection.1.weight"}
IGNORED: dict[str, tuple[str, ...]] = {"diffusers": (), "original": ("freqs",)}

# Our name of a linear or norm, its diffusers name, its original name. {l} is the layer.
_LINEARS = (
    ("time_embedding/linear_in", "condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("time_embedding/linear_out", "condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("time_projection", "condition_embedder.time_proj", "time_projection.1"),
    ("text_embedding/linear_in", "condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("text_embedding/linear_out", "condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("head", "proj_out", "head.head"),
)
_IMAGE = (
    ("image_embedding/norm_in", "condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
    ("image_embedding/mlp/linear_in", "condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("image_embedding/mlp/linear_out", "condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("image_embedding/norm_out", "condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
)
_BLOCK_LINEARS = (
    ("self_attention/qkv", ("attn1.to_q", "attn1.to_k", "attn1.to_v"), ("self_attn.q", "self_attn.k", "self_attn.v")),
    ("self_attention/out", ("attn1.to_out.0",), ("self_attn.o",)),
    ("cross_attention/q", ("attn2.to_q",), ("cross_attn.q",)),
    ("cross_attention/kv", ("attn2.to_k", "attn2.to_v"), ("cross_attn.k", "cross_attn.v")),
    ("cross_attention/out", ("attn2.to_out.0",), ("cross_attn.o",)),
    ("ffn_in", ("ffn.net.0.proj",), ("ffn.0",)),
    ("ffn_out", ("ffn.net.2",), ("ffn.2",)),
)
_BLOCK_IMAGE = (
    ("cross_attention/image_kv", ("attn2.add_k_proj", "attn2.add_v_proj"), ("cross_attn.k_img", "cross_attn.v_img")),
)
_BLOCK_SCALES = (
    ("self_attention/norm_q", "attn1.norm_q", "self_attn.norm_q"),
    ("self_attention/norm_k", "attn1.norm_k", "self_attn.norm_k"),
    ("cross_attention/norm_q", "attn2.norm_q", "cross_attn.norm_q"),
    ("cross_attention/norm_k", "attn2.norm_k", "cross_attn.norm_k"),
)


def rules(config: WanConfig, naming: str) -> list[Rule]:
    """Every tensor of a checkpoint of this size, in one of the two namings."""
    pick: Callable = lambda diffusers, original: diffusers if naming == "diffusers" else original
    table = [
        Rule("patch_embedding.weight", "patch_embedding/weight", transform=_patch_transform(config)),
        Rule("patch_embedding.bias", "patch_embedding/bias"),
        Rule(pick("scale_shift_table", "head.modulation"), "head_modulation", transform=_SQUEEZE),
    ]
    singles = _LINEARS + (_IMAGE if config.image_dim is not None else ())
    for ours, diffusers, original in singles:
        table += _pair(pick(diffusers, original), ours, scale="norm" in ours)
    if config.image_positions is not None:
        key = pick("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos")
        table.append(Rule(key, "image_embedding/positions", transform=_SQUEEZE))
    for layer in range(config.num_layers):
        table += _block_rules(config, layer, pick)
    return table


def infer_config(shapes: Mapping[str, tuple[int, ...]], naming: str) -> WanConfig:
    """Sizes from the tensors alone. Every Wan model has heads of 128."""
    pick: Callable = lambda diffusers, original: shapes.get(diffusers if naming == "diffusers" else original)
    dim, in_channels, *patch = shapes["patch_embedding.weight"]
    layers = {int(key.split(".")[1]) for key in shapes if key.startswith("blocks.")}
    image = pick("condition_embedder.image_embedder.norm1.weight", "img_emb.proj.0.weight")
    positions = pick("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos")
    return WanConfig(
        num_layers=len(layers),
        num_heads=dim // 128,
        ffn_dim=pick("blocks.0.ffn.net.0.proj.weight", "blocks.0.ffn.0.weight")[0],
        in_channels=in_channels,
        out_channels=pick("proj_out.weight", "head.head.weight")[0] // math.prod(patch),
        patch_size=(patch[0], patch[1], patch[2]),
        text_dim=pick("condition_embedder.text_embedder.linear_1.weight", "text_embedding.0.weight")[1],
        freq_dim=pick("condition_embedder.time_embedder.linear_1.weight", "time_embedding.0.weight")[1],
        image_dim=image[0] if image else None,
        image_positions=positions[1] if positions else None,
    )


def _block_rules(config: WanConfig, layer: int, pick: Callable) -> list[Rule]:
    prefix, image = f"blocks.{layer}.", config.image_dim is not None
    table = [
        Rule(prefix + pick("scale_shift_table", "modulation"), "blocks/modulation", layer, transform=_SQUEEZE),
        *_pair(prefix + pick("norm2", "norm3"), "blocks/cross_norm", scale=True, layer=layer),
    ]
    for ours, diffusers, original in _BLOCK_LINEARS + (_BLOCK_IMAGE if image else ()):
        sources = pick(diffusers, original)
        for index, source in enumerate(sources):
            table += _pair(prefix + source, f"blocks/{ours}", layer=layer, part=(index, len(sources)))
    scales = _BLOCK_SCALES + (
        (("cross_attention/norm_image_k", "attn2.norm_added_k", "cross_attn.norm_k_img"),) if image else ()
    )
    for norm, diffusers_key, original_key in scales:
        table.append(Rule(f"{prefix}{pick(diffusers_key, original_key)}.weight", f"blocks/{norm}/scale", layer))
    return table


def _pair(
    source: str, target: str, *, scale: bool = False, layer: int | None = None, part: tuple[int, int] = (0, 1)
) -> list[Rule]:
    """Weight and bias of one linear or LayerNorm; a norm's weight is our `scale`."""
    weight = "scale" if scale else "weight"
    return [
        Rule(f"{source}.weight", f"{target}/{weight}", layer, part),
        Rule(f"{source}.bias", f"{target}/bias", layer, part),
    ]


def _drop_leading_axis(x: np.ndarray) -> np.ndarray:
    if x.shape[0] != 1:
        raise ValueError(f"expected a leading axis of 1, found {x.shape}")
    return x[0]


_SQUEEZE = Transform("squeeze", _drop_leading_axis, lambda x, _: x[None])


def _patch_transform(config: WanConfig) -> Transform:
    """(d, c, pt, ph, pw) of the strided convolution to (d, pt·ph·pw·c): a linear over channels-last patches."""

    def forward(x: np.ndarray) -> np.ndarray:
        return x.transpose(0, 2, 3, 4, 1).reshape(x.shape[0], -1)

    def inverse(x: np.ndarray, _: tuple[int, ...]) -> np.ndarray:
        return x.reshape(x.shape[0], *config.patch_size, config.in_channels).transpose(0, 4, 1, 2, 3)

    return Transform("patches", forward, inverse)
