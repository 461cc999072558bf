"""What `scripts/quantize.py` does: a checkpoint in, the same checkpoint with packed weights out.

    PyTorch files (converters) or a dense checkpoint --one parameter at a time--> quantize_leaf --> Orbax, manifest

Only packed parameters pile up in memory; of the dense ones there is one at a time.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sixbit_jax import calibrate, checkpoint, recipes
from sixbit_jax.components import MODELS
from sixbit_jax.errors import UserError
from sixbit_jax.formats import QuantizedWeight, stored_bytes
from sixbit_jax.manifest import flatten
from sixbit_jax.quantize import StatisticsByPath, check_statistics, plan, quantize, quantize_leaf
from sixbit_jax.recipes import DTYPES, Recipe
from sixbit_jax.shapes import Params, tree_path
from sixbit_jax.staging import refuse_existing, refuse_full_disk

_MANIFEST_BYTES = 10_000_000  # a little more, for the manifest and Orbax's own files


@dataclasses.dataclass(frozen=True)
class Dense:
    """One component of an input, its parameters not read yet."""

    name: str
    kind: str
    config: Any
    abstract: Params
    dtype: str
    stream: Callable[[], Iterator[tuple[str, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class Input:
    """All that a quantized checkpoint takes over from its source."""

    components: tuple[Dense, ...]
    tokenizer: Path | None
    pipeline: dict[str, Any]
    provenance: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Quantized:
    """What became of one component."""

    component: str
    weights: int
    dense_bytes: int
    nbytes: int
    seconds: float


def quantize_command(args: argparse.Namespace) -> None:
    """Run the command. What can be wrong is found before the first weight is read."""
    recipe = recipes.load(args.recipe)
    if args.text_encoder_recipe:
        recipe = recipes.with_text_encoder(recipe, recipes.load(args.text_encoder_recipe))
    recipe = dataclasses.replace(recipe, dtype=args.dtype or recipe.dtype)
    if not (recipe.weights or recipe.text_encoder):
        raise UserError(f"--recipe {recipe.name}: quantizes nothing; scripts/convert.py makes dense checkpoints")
    refuse_existing(args.output, overwrite=args.overwrite, replaceable=checkpoint.is_checkpoint)
    statistics = gather_statistics(args, str(args.input), recipe.dtype)
    results = quantize_checkpoint(args.input, args.output, recipe, statistics, overwrite=args.overwrite)
    for each in results:
        print(_describe(each))
    print(f"{args.output}: recipe {recipe.name}")


def gather_statistics(args: argparse.Namespace, model: str, dtype: str) -> calibrate.StatisticsByComponent | None:
    """From a file, or by running the dense model on prompts now; None when neither was asked for."""
    if args.statistics and args.calibrate_prompts:
        raise UserError("--statistics: was made from prompts already; leave --calibrate-prompts out")
    if args.statistics:
        return calibrate.load(args.statistics)
    if not args.calibrate_prompts:
        return None
    from sixbit_jax.evaluate.prompts import read_prompts
    from sixbit_jax.pipeline import WanPipeline

    prompts = [prompt.text for prompt in read_prompts(args.calibrate_prompts, "--calibrate-prompts")]
    pipe = WanPipeline.load(model, Recipe("dense", dtype=dtype))
    with tqdm(total=len(prompts), desc="calibrate", unit="prompt", dynamic_ncols=True, disable=None) as bar:
        statistics = calibrate.collect(
            pipe, prompts, report=lambda _: bar.update(), num_inference_steps=args.calibrate_steps
        )
    if args.save_statistics:
        facts = {"model": model, "fingerprint": pipe.components.fingerprint, "dtype": dtype, "prompts": prompts}
        calibrate.save(args.save_statistics, statistics, facts)
    return statistics


def quantize_checkpoint(
    path: Path,
    output: Path,
    recipe: Recipe,
    statistics: Mapping[str, StatisticsByPath] | None = None,
    *,
    overwrite: bool = False,
) -> list[Quantized]:
    """Quantize an input (see `converters.sources`, or one of our checkpoints) to a checkpoint at `output`."""
    refuse_existing(output, overwrite=overwrite, replaceable=checkpoint.is_checkpoint)
    source = open_input(path, recipe.dtype)
    for each in source.components:
        known = (statistics or {}).get(each.name)
        check_statistics(each.abstract, plan(each.abstract, recipe, each.name), recipe, known, each.name)
    with checkpoint.draft(output, overwrite=overwrite) as draft:
        expected = (quantize(each.abstract, recipe, component=each.name) for each in source.components)
        refuse_full_disk(output, sum(map(stored_bytes, expected)) + _MANIFEST_BYTES)
        results = [_convert(each, draft, recipe, (statistics or {}).get(each.name)) for each in source.components]
        if source.tokenizer:
            draft.add_tokenizer(source.tokenizer)
        draft.finish(source.pipeline, source.provenance)
    return results


def open_input(path: Path, dtype: str) -> Input:
    """Look at a dense checkpoint of ours or at PyTorch files."""
    return _open_checkpoint(path, dtype) if checkpoint.is_checkpoint(path) else _open_pytorch(path, dtype)


def _open_checkpoint(path: Path, dtype: str) -> Input:
    manifest = checkpoint.read_manifest(path)
    parts = []
    for name, entry in manifest.components.items():
        if entry.recipe is not None:
            raise UserError(f"--input {path}: its {name} is quantized already, with recipe {entry.recipe['name']}")
        config_class, abstract_params = MODELS[name]
        config, kept = config_class.from_dict(entry.config), "f32" if name == "vae" else dtype
        abstract = abstract_params(config, DTYPES[kept])
        stream = lambda name=name: checkpoint.stream(path, name)
        parts.append(Dense(name, entry.kind, config, abstract, kept, stream))
    tokenizer = path / checkpoint.TOKENIZER
    return Input(tuple(parts), tokenizer if tokenizer.is_dir() else None, manifest.pipeline, manifest.source)


def _open_pytorch(path: Path, dtype: str) -> Input:
    from converters import convert, rules
    from converters.sources import find

    source = find(path)
    mark = convert.fingerprint(source)
    parts = []
    for part in source.parts:
        p = convert.plan(part, dtype)
        stream = lambda p=p: rules.stream(p.reader, p.rules, p.abstract)
        parts.append(Dense(p.component, p.kind.name, p.config, p.abstract, p.dtype, stream))
    return Input(tuple(parts), source.tokenizer, source.pipeline, convert.provenance(source, mark))


def _convert(part: Dense, draft: checkpoint.Draft, recipe: Recipe, statistics: StatisticsByPath | None) -> Quantized:
    start = time.perf_counter()
    methods = plan(part.abstract, recipe, part.name)
    wanted, leaves = flatten(part.abstract), {}
    with tqdm(total=len(wanted), desc=part.name, unit="parameter", dynamic_ncols=True, disable=None) as bar:
        for path, values in part.stream():
            array = values.astype(wanted[path].dtype, copy=False)
            leaves[path] = _to_host(path, array, methods, statistics) if path in methods else array
            bar.update()
    params = jax.tree_util.tree_map_with_path(lambda path, _: leaves[tree_path(path)], part.abstract)
    stored = recipes.to_json(recipe) if methods else None
    draft.add(part.name, part.kind, part.config.to_dict(), part.dtype, params, stored)
    seconds = time.perf_counter() - start
    return Quantized(part.name, len(methods), stored_bytes(part.abstract), stored_bytes(params), seconds)


def _to_host(
    path: str, array: np.ndarray, methods: Mapping[str, Any], statistics: StatisticsByPath | None
) -> QuantizedWeight:
    return jax.tree.map(np.asarray, quantize_leaf(path, jnp.asarray(array), methods[path], statistics))


def _describe(result: Quantized) -> str:
    size = f"{result.nbytes / 1e6:.2f} MB"
    if not result.weights:
        return f"{result.component}: kept as it is, {size}"
    smaller = f"{result.dense_bytes / result.nbytes:.2f}x smaller than {result.dense_bytes / 1e6:.2f} MB"
    return f"{result.component}: {result.weights} weights quantized, {size}, {smaller}, {result.seconds:.1f} s"
