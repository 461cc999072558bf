"""Stage 3: the trained weights as a folder in diffusers' layout, small enough to keep in a repository."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from converters.components import COMPONENTS
from converters.export import export_component, write_json, write_pipeline
from sixbit_jax.models import umt5, wan_modules
from sixbit_jax.shapes import Params
from sixbit_jax.staging import staged
from sixbit_jax.tiny.autoencoding import half_precision
from sixbit_jax.tiny.flow import SHIFT
from sixbit_jax.tiny.sizes import Sizes
from sixbit_jax.tiny.tokenizer import write_tokenizer
from sixbit_jax.tiny.train_dit import load_dit
from sixbit_jax.tiny.train_vae import load_vae

SHARD_BYTES = 14 * 2**20
_PROMPT = "a large red circle drifts slowly to the right over a blue striped background"


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What the folder samples with unless a user says otherwise."""

    num_inference_steps: int
    guidance_scale: float
    fps: int = 8


def export(work: Path, target: Path, sizes: Sizes, defaults: Defaults, *, overwrite: bool) -> None:
    """Write the folder: transformer and text encoder in bf16, the autoencoder in f16."""
    vae_config, vae_params = load_vae(work)
    trained = load_dit(work, sizes)
    parts = {
        "transformer": (
            sizes.transformer,
            half_precision(trained["transformer"], wan_modules.abstract_params(sizes.transformer, jnp.bfloat16)),
        ),
        "text_encoder": (
            sizes.text_encoder,
            half_precision(trained["text_encoder"], umt5.abstract_params(sizes.text_encoder, jnp.bfloat16)),
        ),
        "vae": (vae_config, _in_f16(vae_params)),
    }
    with staged(target, overwrite=overwrite, replaceable=lambda folder: (folder / "model_index.json").is_file()) as new:
        for name, (config, params) in parts.items():
            export_component(new / name, COMPONENTS[name], config, jax.device_get(params), shard_bytes=SHARD_BYTES)
        write_tokenizer(new / "tokenizer")
        write_pipeline(new, parts, "PreTrainedTokenizerFast", flow_shift=SHIFT)
        write_json(new / "defaults.json", _settings(sizes, defaults))


def _in_f16(params: Params) -> Params:
    """f16 keeps three more bits than bf16 and the weights are far from its limits."""
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float16), params)


def _settings(sizes: Sizes, defaults: Defaults) -> dict[str, Any]:
    video = {"height": sizes.height, "width": sizes.width, "num_frames": sizes.frames}
    return {"prompt": _PROMPT, "negative_prompt": ""} | video | dataclasses.asdict(defaults)
