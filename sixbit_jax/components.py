"""The loaded parts of a checkpoint: transformers, text encoder, tokenizer, VAE, and what its pipeline defaults to."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sixbit_jax import checkpoint
from sixbit_jax.errors import UserError
from sixbit_jax.models import umt5, vae, wan_modules
from sixbit_jax.models.vae_config import VAEConfig
from sixbit_jax.models.wan_config import WanConfig
from sixbit_jax.recipes import DTYPES
from sixbit_jax.shapes import Params
from sixbit_jax.text import Tokenizer, load_tokenizer

REQUIRED = ("transformer", "text_encoder", "vae")


@dataclasses.dataclass(frozen=True)
class Components:
    """Parameters on the device, with the configurations that read them.

    `experts` has one entry, or two for Wan2.2 A14B.
    """

    experts: tuple[Params, ...]
    transformer_configs: tuple[WanConfig, ...]
    text_params: Params
    text_config: umt5.UMT5Config
    vae_params: Params
    vae_config: VAEConfig
    tokenizer: Tokenizer
    defaults: dict[str, Any]
    boundary_ratio: float | None
    source: str

    @classmethod
    def load(cls, path_or_id: str | Path, dtype: str) -> "Components":
        """Read everything a video needs.

        The VAE is always f32: its rounding is visible, its share of the time is small.
        """
        folder = locate(path_or_id, dtype)
        manifest = checkpoint.read_manifest(folder)
        if missing := [name for name in REQUIRED if name not in manifest.components]:
            raise UserError(f"--model {path_or_id}: has no {', '.join(missing)}; convert the whole pipeline folder")
        names = [name for name in ("transformer", "transformer_2") if name in manifest.components]
        transformers = [_load(folder, name, WanConfig, wan_modules.abstract_params, dtype) for name in names]
        text_config, text_params = _load(folder, "text_encoder", umt5.UMT5Config, umt5.abstract_params, dtype)
        tokenizer = load_tokenizer(folder / "tokenizer")
        # jax reads the nearest row for an index out of range, so a tokenizer of another model would pass unnoticed.
        if tokenizer.vocab_size > text_config.vocab_size:
            sizes = f"{tokenizer.vocab_size} tokens, the text encoder {text_config.vocab_size} embeddings"
            raise UserError(f"--model {path_or_id}: the tokenizer has {sizes}; they belong to different models")
        vae_config, vae_params = _load(folder, "vae", VAEConfig, vae.abstract_params, "f32")
        return cls(
            experts=tuple(params for _, params in transformers),
            transformer_configs=tuple(config for config, _ in transformers),
            text_params=text_params,
            text_config=text_config,
            vae_params=vae_params,
            vae_config=vae_config,
            tokenizer=tokenizer,
            defaults=manifest.pipeline.get("defaults", {}),
            boundary_ratio=manifest.pipeline.get("boundary_ratio"),
            source=str(path_or_id),
        )

    def weight_bytes(self) -> dict[str, int]:
        """Bytes of the parameters on the device, measured from the arrays."""
        trees = {"transformer": self.experts, "text_encoder": self.text_params, "vae": self.vae_params}
        return {name: sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for name, tree in trees.items()}


def locate(path_or_id: str | Path, dtype: str) -> Path:
    """The converted checkpoint behind a path or hub id.

    PyTorch folders are converted once, into a cache next to them.
    """
    from converters.convert import cached

    path = Path(path_or_id)
    if checkpoint.is_checkpoint(path):
        return path
    if path.exists():
        return cached(path, dtype)
    name = str(path_or_id)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return cached(_download(name), dtype)
    raise UserError(
        f"--model {path_or_id}: no such folder (and not a hub id, which looks like Wan-AI/Wan2.1-T2V-1.3B-Diffusers)"
    )


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "tokenizer/*"]
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except Exception as error:  # the hub library raises many kinds: offline, missing, private, timeouts
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"--model {repository}: no such folder here, and the hub says: {reason}") from None


def _load(folder: Path, name: str, config_class: Any, abstract_params: Any, dtype: str) -> tuple[Any, Params]:
    """One component, its leaves in the dtypes the model wants under `dtype`."""
    values, params = checkpoint.load(folder, name)
    config = config_class.from_dict(values)
    wanted = abstract_params(config, DTYPES[dtype])
    return config, jax.tree.map(lambda x, want: jnp.asarray(x, want.dtype), params, wanted)
