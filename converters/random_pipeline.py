"""A whole pipeline folder in diffusers' layout with random weights: for tests, for CI, and for measuring speed.

Tensors are drawn one at a time under the names of the tables, so that a 14B model needs no more memory than its largest
tensor. Norms and biases are random too: a converter that mixes them up must not pass unnoticed.
"""

import dataclasses
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.components import COMPONENTS, DTYPES, Kind
from converters.export import Described, count_bytes, describe, write_component, write_json, write_pipeline
from converters.rules import Rule
from converters.tokenizer import write_tokenizer
from sixbit_jax.errors import UserError, nearest
from sixbit_jax.models.umt5 import UMT5_XXL, UMT5Config
from sixbit_jax.models.vae_config import VAEConfig
from sixbit_jax.models.wan_config import WAN_1_3B, WAN_14B, WanConfig
from sixbit_jax.staging import refuse_full_disk, staged

_VAE = VAEConfig()
_TINY_WAN = WanConfig(num_layers=2, num_heads=2, ffn_dim=512, text_dim=64)
_TINY_TEXT = UMT5Config(vocab_size=256, d_model=64, num_layers=2, num_heads=4, ffn_dim=128, head_dim=16)
_TINY_DEFAULTS = {
    "prompt": "a red circle drifts to the left",
    "height": 64,
    "width": 64,
    "num_frames": 5,
    "num_inference_steps": 4,
}


@dataclasses.dataclass(frozen=True)
class Size:
    """What a named size is made of. Two experts make a Wan2.2 pipeline."""

    transformer: WanConfig
    text_encoder: UMT5Config = UMT5_XXL
    vae: VAEConfig = _VAE
    experts: int = 1
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def components(self) -> dict[str, Any]:
        experts = {name: self.transformer for name in ("transformer", "transformer_2")[: self.experts]}
        return experts | {"text_encoder": self.text_encoder, "vae": self.vae}


_TINY = Size(_TINY_WAN, _TINY_TEXT, VAEConfig(base_dim=16), defaults=_TINY_DEFAULTS)
SIZES = {
    "tiny": _TINY,
    "tiny-a14b": dataclasses.replace(_TINY, experts=2),
    "1.3B": Size(WAN_1_3B),
    "14B": Size(WAN_14B),
    "a14b": Size(WAN_14B, experts=2),
}


def write_random_pipeline(folder: Path, size: str = "tiny", seed: int = 0, dtype: str = "f32") -> None:
    """Write a folder that `diffusers.WanPipeline.from_pretrained` loads and `scripts/convert.py` reads."""
    if size not in SIZES:
        raise UserError(f'--size: unknown size "{size}"; {nearest(size, SIZES)}')
    chosen = SIZES[size]
    parts = {name: _describe(COMPONENTS[name], config, dtype) for name, config in chosen.components().items()}
    with staged(folder, overwrite=False, replaceable=lambda _: False) as partial:
        refuse_full_disk(folder, sum(count_bytes(described) for _, described in parts.values()))
        for name, config in chosen.components().items():
            rules, described = parts[name]
            tensors = _draw_tensors(rules, described, seed)
            write_component(partial / name, COMPONENTS[name], config, tensors, described)
        write_tokenizer(partial / "tokenizer")
        boundary = 0.875 if chosen.experts > 1 else None
        write_pipeline(partial, chosen.components(), "T5TokenizerFast", boundary_ratio=boundary)
        if chosen.defaults:
            write_json(partial / "defaults.json", chosen.defaults)


def _describe(kind: Kind, config: Any, dtype: str) -> tuple[Sequence[Rule], Described]:
    rules = kind.table.rules(config, "diffusers")
    return rules, describe(rules, kind.abstract_params(config, DTYPES[kind.dtype(dtype)]))


def _draw_tensors(rules: Sequence[Rule], described: Described, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    for rule in rules:
        dtype, shape = described[rule.source]
        rng = np.random.default_rng([seed, zlib.crc32(rule.source.encode())])
        tensor = rng.standard_normal(shape, np.float32)
        mean, deviation = _moments(rule.target.split("/")[-1], shape)
        tensor *= deviation  # in place: the largest tensor has a billion values
        tensor += mean
        yield rule.source, tensor.astype(dtype, copy=False)


def _moments(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and deviation by the last word of our path: matrices keep their input's variance, norms are near one."""
    fixed = {"bias": (0.0, 0.1), "scale": (1.0, 0.1), "weight": (0.0, math.prod(shape[1:]) ** -0.5)}
    return fixed.get(name, (0.0, shape[-1] ** -0.5))
