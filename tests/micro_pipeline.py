"""A pipeline folder of tiny-wan's kind in micro size, with random weights: loads, samples and is read in seconds."""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from converters.components import COMPONENTS
from converters.export import export_component, write_json, write_pipeline
from sixbit_jax.tiny.sizes import SIZES
from sixbit_jax.tiny.tokenizer import write_tokenizer

MICRO = SIZES["micro"]


def write_micro_pipeline(folder: Path, seed: int = 0) -> Path:
    """f32, two steps by default."""
    parts = {"transformer": MICRO.transformer, "text_encoder": MICRO.text_encoder, "vae": MICRO.vae}
    for name, config in parts.items():
        kind = COMPONENTS[name]
        export_component(folder / name, kind, config, random_params(kind.abstract_params(config), seed))
    write_tokenizer(folder / "tokenizer")
    write_pipeline(folder, parts, "PreTrainedTokenizerFast", flow_shift=3.0)
    video = {"height": MICRO.height, "width": MICRO.width, "num_frames": MICRO.frames, "fps": 8}
    sampling = {"num_inference_steps": 2, "guidance_scale": 3.0}
    write_json(
        folder / "defaults.json", {"prompt": "a red circle moves left", "negative_prompt": ""} | video | sampling
    )
    return folder


def random_params(abstract: Any, seed: int = 0) -> Any:
    """Matrices keep the variance of their input, norms are near one: random too, or mixing them up would go unseen."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        mean, deviation = {"scale": (1.0, 0.1), "bias": (0.0, 0.1)}.get(path[-1].key, (0.0, _deviation(leaf.shape)))
        return (mean + deviation * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract)


def _deviation(shape: tuple[int, ...]) -> float:
    """Stacks of matrices lead with layers; kernels of convolutions have more axes."""
    fan_in = shape[-1] if len(shape) < 4 else math.prod(shape[:-1])
    return fan_in**-0.5
