"""The way back: our parameters as component folders that diffusers and transformers load.

config.json  <stem>.safetensors                                    or, above the shard size,
config.json  <stem>-00001-of-00003.safetensors … <stem>.safetensors.index.json
"""

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from converters.components import COMPONENTS, Kind
from converters.rules import Rule, flatten, revert, source_shapes
from converters.safetensors_file import write_file
from sixbit_jax.shapes import Params

SHARD_BYTES = 5_000_000_000
_DIFFUSERS = "0.35.0"  # the version whose class names and keys these are

# Type and shape of each tensor, by key, in the order of writing.
Described: TypeAlias = Mapping[str, tuple[np.dtype, tuple[int, ...]]]


def export_component(folder: Path, kind: Kind, config: Any, params: Params, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write `config.json` and the weights of one component, in diffusers' naming."""
    rules = kind.table.rules(config, "diffusers")
    write_component(folder, kind, config, revert(params, rules), describe(rules, params), shard_bytes)


def describe(rules: Iterable[Rule], abstract: Params) -> Described:
    """Type and shape of every source tensor, from our tree."""
    rules = list(rules)
    shapes, leaves = source_shapes(rules, abstract), flatten(abstract)
    return {rule.source: (np.dtype(leaves[rule.target].dtype), shapes[rule.source]) for rule in rules}


def write_component(
    folder: Path,
    kind: Kind,
    config: Any,
    tensors: Iterable[tuple[str, np.ndarray]],
    described: Described,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Stream tensors into a component folder; `described` has their keys in the same order."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {"_class_name": kind.class_name} | config.to_dict())
    shards = _split(described, shard_bytes)
    names = _shard_names(kind.file_stem, len(shards))
    stream = iter(tensors)
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, itertools.islice(stream, len(shard)), shard)
    if len(shards) > 1:
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        index = {"metadata": {"total_size": count_bytes(described)}, "weight_map": weight_map}
        write_json(folder / f"{kind.file_stem}.safetensors.index.json", index)


def count_bytes(described: Described) -> int:
    """The size of all tensors together."""
    return sum(map(_nbytes, described.values()))


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write an object, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2) + "\n")


def _split(described: Described, shard_bytes: int) -> list[Described]:
    """Consecutive keys, each shard at most `shard_bytes` (or one tensor)."""
    shards: list[dict[str, Any]] = [{}]
    room = shard_bytes
    for key, facts in described.items():
        if _nbytes(facts) > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][key] = facts
        room -= _nbytes(facts)
    return list(shards)


def _shard_names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _nbytes(facts: tuple[np.dtype, tuple[int, ...]]) -> int:
    return math.prod(facts[1]) * facts[0].itemsize


def write_pipeline(
    folder: Path,
    components: Iterable[str],
    tokenizer: str,
    *,
    flow_shift: float = 3.0,
    boundary_ratio: float | None = None,
) -> None:
    """What makes component folders a diffusers pipeline: its index and the configuration of UniPC for flow models."""
    classes = {name: [COMPONENTS[name].library, COMPONENTS[name].class_name] for name in components}
    index = {
        "_class_name": "WanPipeline",
        "_diffusers_version": _DIFFUSERS,
        "boundary_ratio": boundary_ratio,
        "expand_timesteps": False,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "tokenizer": ["transformers", tokenizer],
        "transformer_2": [None, None],
    }
    scheduler = {
        "_class_name": "UniPCMultistepScheduler",
        "_diffusers_version": _DIFFUSERS,
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": flow_shift,
        "solver_order": 2,
        "solver_type": "bh2",
        "predict_x0": True,
        "lower_order_final": True,
        "final_sigmas_type": "zero",
    }
    write_json(folder / "model_index.json", index | classes)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
