"""The loaded parts of a checkpoint: transformers, text encoder, tokenizer, VAE, and what its pipeline defaults to.

Weights that a recipe quantizes are stored packed on the device; the dense ones pass through it one at a time.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sixbit_jax import checkpoint, recipes
from sixbit_jax.errors import UserError
from sixbit_jax.manifest import Component, Manifest, describe, difference, flatten
from sixbit_jax.models import umt5, vae, wan_modules
from sixbit_jax.models.vae_config import VAEConfig
from sixbit_jax.models.wan_config import WanConfig
from sixbit_jax.quantize import StatisticsByPath, check_statistics, plan, quantize, quantize_leaf
from sixbit_jax.recipes import DTYPES, Recipe
from sixbit_jax.shapes import Params, tree_path
from sixbit_jax.text import Tokenizer, load_tokenizer

REQUIRED = ("transformer", "text_encoder", "vae")
_TRANSFORMERS = ("transformer", "transformer_2")
# Configuration and parameter shapes of each component.
MODELS: dict[str, tuple[Any, Any]] = {
    "transformer": (WanConfig, wan_modules.abstract_params),
    "transformer_2": (WanConfig, wan_modules.abstract_params),
    "text_encoder": (umt5.UMT5Config, umt5.abstract_params),
    "vae": (VAEConfig, vae.abstract_params),
}


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
    fingerprint: str = ""
    dtype: str = "f32"

    @classmethod
    def load(
        cls,
        path_or_id: str | Path,
        dtype: str,
        recipe: Recipe | None = None,
        statistics: Mapping[str, StatisticsByPath] | None = None,
    ) -> "Components":
        """Read everything a video needs; what `recipe` quantizes is quantized now, or was when the checkpoint was made.

        The VAE is always f32: its rounding is visible, its share of the time is small. `statistics`: by component, for
        the methods that need them.
        """
        recipe = recipe or Recipe("dense", dtype=dtype)
        folder = locate(path_or_id, dtype)
        manifest = checkpoint.read_manifest(folder)
        if missing := [name for name in REQUIRED if name not in manifest.components]:
            raise UserError(f"--model {path_or_id}: has no {', '.join(missing)}; convert the whole pipeline folder")
        names = [name for name in _TRANSFORMERS if name in manifest.components]
        check_recipe(str(path_or_id), manifest, recipe, statistics)
        read = lambda name: _load(folder, name, manifest.components[name], dtype, recipe, (statistics or {}).get(name))
        transformers = [read(name) for name in names]
        text_config, text_params = read("text_encoder")
        tokenizer = _load_tokenizer(folder, Path(path_or_id))
        # jax reads the nearest row for an index out of range, so a tokenizer of another model would pass unnoticed.
        if tokenizer.vocab_size > text_config.vocab_size:
            sizes = f"{tokenizer.vocab_size} tokens, the text encoder {text_config.vocab_size} embeddings"
            raise UserError(f"--model {path_or_id}: the tokenizer has {sizes}; they belong to different models")
        vae_config, vae_params = read("vae")
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
            fingerprint=manifest.source.get("fingerprint", ""),
            dtype=dtype,
        )

    def weight_bytes(self) -> dict[str, int]:
        """Bytes of the parameters on the device, measured from the arrays."""
        trees = {"transformer": self.experts, "text_encoder": self.text_params, "vae": self.vae_params}
        return {name: sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for name, tree in trees.items()}

    def dense_bytes(self) -> dict[str, int]:
        """What the same parameters take when nothing is quantized."""
        shapes = {
            "transformer": [wan_modules.abstract_params(c, DTYPES[self.dtype]) for c in self.transformer_configs],
            "text_encoder": umt5.abstract_params(self.text_config, DTYPES[self.dtype]),
            "vae": vae.abstract_params(self.vae_config, jnp.float32),
        }
        size = lambda leaf: math.prod(leaf.shape) * leaf.dtype.itemsize
        return {name: sum(map(size, jax.tree.leaves(tree))) for name, tree in shapes.items()}


def _load_tokenizer(folder: Path, source: Path) -> Tokenizer:
    """That of the converted checkpoint; a complaint names the file it was copied from, which a user can mend."""
    try:
        return load_tokenizer(folder / "tokenizer")
    except UserError:
        if source.is_dir():
            load_tokenizer(source / "tokenizer")
        raise


def stored_recipe(path_or_id: str | Path) -> Recipe | None:
    """The recipe of a checkpoint that is quantized already; None for every other input."""
    path = Path(path_or_id)
    if not checkpoint.is_checkpoint(path):
        return None
    entries = checkpoint.read_manifest(path).components.values()
    stored = next((entry.recipe for entry in entries if entry.recipe), None)
    return None if stored is None else recipes.from_json(stored)


def check_recipe(
    source: str, manifest: Manifest, recipe: Recipe, statistics: Mapping[str, StatisticsByPath] | None
) -> None:
    """Refuse a recipe that cannot run on these components, before any weight is read."""
    for name in (*_TRANSFORMERS, "text_encoder"):
        entry = manifest.components.get(name)
        if entry is None:
            continue
        if entry.recipe is not None:
            _check_stored(source, name, recipes.from_json(entry.recipe), recipe)
            continue
        wanted = _shapes(name, entry, recipe.dtype)[1]
        check_statistics(wanted, plan(wanted, recipe, name), recipe, (statistics or {}).get(name), name)


def _check_stored(source: str, name: str, stored: Recipe, recipe: Recipe) -> None:
    """A quantized component fits the recipes that store its weights the same way, and no others."""
    if stored.rules(name) != recipe.rules(name):
        raise UserError(
            f"--model {source}: its {name} is quantized with recipe {stored.name}, whose weights are not those of "
            f"{recipe.name}; leave --recipe out, or take the dense checkpoint"
        )


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


def _load(
    folder: Path, name: str, entry: Component, dtype: str, recipe: Recipe, statistics: StatisticsByPath | None
) -> tuple[Any, Params]:
    """One component, its leaves in the dtypes the model wants under `dtype`, quantized where the recipe says so."""
    config, wanted = _shapes(name, entry, dtype)
    if entry.recipe is not None:
        return config, _load_quantized(folder, name, entry, quantize(wanted, recipe, component=name))
    methods = plan(wanted, recipe, name)
    if not methods:
        params = checkpoint.load(folder, name)[1]
        return config, jax.tree.map(lambda x, want: jnp.asarray(x, want.dtype), params, wanted)

    def place(path: Any, leaf: Any, want: Any) -> Any:
        key, array = tree_path(path), jnp.asarray(leaf, want.dtype)
        return quantize_leaf(key, array, methods[key], statistics) if key in methods else array

    return config, jax.tree_util.tree_map_with_path(place, checkpoint.load_numpy(folder, name)[1], wanted)


def _shapes(name: str, entry: Component, dtype: str) -> tuple[Any, Params]:
    """A component's configuration and the dense parameters that its model wants."""
    config_class, abstract_params = MODELS[name]
    config = config_class.from_dict(entry.config)
    return config, abstract_params(config, DTYPES["f32" if name == "vae" else dtype])


def _load_quantized(folder: Path, name: str, entry: Component, wanted: Params) -> Params:
    """Packed arrays as they lie on disk, in the pytree types of `wanted`; what is not quantized in its dtypes."""
    shapes = lambda parameters: {path: text.partition("[")[2] for path, text in parameters.items()}
    if text := difference(shapes(describe(wanted)), shapes(entry.parameters)):
        raise UserError(f"{folder / name}: does not fit its recipe: {text}; quantize the checkpoint again")
    leaves = flatten(checkpoint.load(folder, name)[1])
    fit = lambda path, want: jnp.asarray(leaves[tree_path(path)], want.dtype)
    return jax.tree_util.tree_map_with_path(fit, wanted)
