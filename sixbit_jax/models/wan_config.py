"""The sizes of a Wan DiT, as read from a checkpoint's `config.json` (diffusers or original naming)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sixbit_jax.errors import UserError

# Linears that share an input are one product and one precision decision. The order is that of a route index's last
# axis.
GROUPS = ("self_qkv", "self_out", "cross_q", "cross_out", "ffn_in", "ffn_out")

# The weight that each group multiplies with, by its path in the parameter tree.
GROUP_WEIGHTS = {
    "self_qkv": "blocks/self_attention/qkv/weight",
    "self_out": "blocks/self_attention/out/weight",
    "cross_q": "blocks/cross_attention/q/weight",
    "cross_out": "blocks/cross_attention/out/weight",
    "ffn_in": "blocks/ffn_in/weight",
    "ffn_out": "blocks/ffn_out/weight",
}

TEXT_TOKENS = 512
TRAIN_TIMESTEPS = 1000

_DIFFUSERS_NAMES = {
    "num_heads": "num_attention_heads",
    "head_dim": "attention_head_dim",
    "image_positions": "pos_embed_seq_len",
}
# Values the model has no code for: anything else in these keys is another architecture.
_FIXED = {"cross_attn_norm": (True,), "qk_norm": ("rms_norm_across_heads", True), "window_size": ((-1, -1), None)}


@dataclasses.dataclass(frozen=True)
class WanConfig:
    """One transformer.

    `image_dim` and `image_positions` are set for the checkpoints that read CLIP image tokens (Wan2.1 I2V, FLF2V).
    """

    num_layers: int
    num_heads: int
    ffn_dim: int
    head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    text_dim: int = 4096
    freq_dim: int = 256
    eps: float = 1e-6
    image_dim: int | None = None
    image_positions: int | None = None

    @property
    def dim(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def patch_volume(self) -> int:
        return self.patch_size[0] * self.patch_size[1] * self.patch_size[2]

    def grid(self, latent_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Tokens along (t, h, w) for latents of that size."""
        for size, patch, axis in zip(latent_shape, self.patch_size, "thw", strict=True):
            if size % patch:
                raise ValueError(f"latent axis {axis} has {size} positions, not a multiple of the patch size {patch}")
        t, h, w = (size // patch for size, patch in zip(latent_shape, self.patch_size, strict=True))
        return t, h, w

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "WanConfig":
        """Read diffusers' `WanTransformer3DModel` keys, or those of the original repository's `WanModel`."""
        for key, allowed in _FIXED.items():
            value = tuple(data[key]) if isinstance(data.get(key), list) else data.get(key, allowed[0])
            if value not in allowed:
                raise UserError(f"transformer config: {key}={value!r} is not supported (supported: {allowed[0]!r})")
        return _from_original(data) if "dim" in data else _from_diffusers(data)

    def to_dict(self) -> dict[str, Any]:
        """Diffusers' keys, which `from_dict` reads back."""
        fields = dataclasses.asdict(self) | {"patch_size": list(self.patch_size)}
        named = {_DIFFUSERS_NAMES.get(key, key): value for key, value in fields.items()}
        fixed = {"cross_attn_norm": True, "qk_norm": "rms_norm_across_heads"}
        return named | fixed | {"added_kv_proj_dim": None if self.image_dim is None else self.dim}


def _from_diffusers(data: Mapping[str, Any]) -> WanConfig:
    values = {}
    for field in dataclasses.fields(WanConfig):
        key = _DIFFUSERS_NAMES.get(field.name, field.name)
        if key in data:
            values[field.name] = data[key]
        elif field.default is dataclasses.MISSING:
            raise UserError(f'transformer config: "{key}" is missing')
    return WanConfig(**values | {"patch_size": tuple(values.get("patch_size", (1, 2, 2)))})


def _from_original(data: Mapping[str, Any]) -> WanConfig:
    try:
        return WanConfig(
            num_layers=data["num_layers"],
            num_heads=data["num_heads"],
            ffn_dim=data["ffn_dim"],
            head_dim=data["dim"] // data["num_heads"],
            in_channels=data["in_dim"],
            out_channels=data["out_dim"],
            patch_size=tuple(data.get("patch_size", (1, 2, 2))),
            text_dim=data.get("text_dim", 4096),
            freq_dim=data["freq_dim"],
            eps=data.get("eps", 1e-6),
            # The original marks image checkpoints by name only; Wan2.2's I2V ("i2v" with 36 channels) has no image
            # branch, so the tensors decide and the converter's own inference from shapes fills these two in.
            image_dim=data.get("image_dim"),
            image_positions=data.get("image_positions"),
        )
    except KeyError as error:
        raise UserError(f"transformer config: {error.args[0]!r} is missing") from None


WAN_1_3B = WanConfig(num_layers=30, num_heads=12, ffn_dim=8960)
WAN_14B = WanConfig(num_layers=40, num_heads=40, ffn_dim=13824)
