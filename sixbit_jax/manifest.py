"""The manifest of a checkpoint folder: what it holds, where that came from, and what it takes to load it.

It is written last, so a folder without one is no checkpoint. Trees are described by path, dtype and shape
(`{"blocks/ffn_in/weight": "bfloat16[30,8960,1536]"}`): enough to refuse a mismatch in words before any data is read.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sixbit_jax.errors import UserError
from sixbit_jax.shapes import Params, tree_path
from sixbit_jax.versions import versions

FORMAT_VERSION = 2
FILE_NAME = "manifest.json"

_PACKAGES = ("sixbit-jax", "jax", "flax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass(frozen=True)
class Component:
    """One model of a checkpoint. `kind` says which model code runs it, `dtype` is what its matrices are stored in.

    A quantized one names its `recipe` (in the JSON of `recipes.to_json`); its dtype is that of the other matrices.
    """

    kind: str
    config: dict[str, Any]
    dtype: str
    parameters: dict[str, str]
    recipe: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All of `manifest.json`.

    pipeline: `{"defaults": fields of Settings, "boundary_ratio", "expand_timesteps"}`.
    source: `{"path", "fingerprint", "files": {name: {"bytes", "sha256"}}}`.
    """

    components: dict[str, Component]
    pipeline: dict[str, Any]
    source: dict[str, Any]
    versions: dict[str, str] = dataclasses.field(default_factory=lambda: installed_versions())
    format_version: int = FORMAT_VERSION

    @property
    def contents(self) -> str:
        """Names the weights by the checksums of the files they came from, wherever those lie; empty when unknown."""
        sums = sorted(facts["sha256"] for name, facts in self.source.get("files", {}).items() if _has_weights(name))
        return hashlib.sha256(" ".join(sums).encode()).hexdigest()[:24] if sums else ""


def _has_weights(name: str) -> bool:
    return not name.endswith((".json", ".model"))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`; the folder is a checkpoint from then on."""
    (folder / FILE_NAME).write_text(json.dumps(dataclasses.asdict(manifest), indent=2) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read and check `manifest.json`."""
    fields = _read_fields(folder)
    version = fields.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise UserError(
            f"{folder}: checkpoint format {version}, this version reads up to {FORMAT_VERSION}; update sixbit-jax"
        )
    try:
        components = {name: Component(**entry) for name, entry in fields["components"].items()}
        return Manifest(**fields | {"components": components})
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / FILE_NAME}: damaged; convert the checkpoint again") from None


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder looks like one of ours (it may still fail to load)."""
    return (folder / FILE_NAME).is_file()


def describe(tree: Params) -> dict[str, str]:
    """Path to `dtype[shape]` of every leaf; works on arrays and on `ShapeDtypeStruct`s.

    >>> import numpy as np
    >>> describe({"head": {"bias": np.zeros((2, 3), np.float32)}})
    {'head/bias': 'float32[2,3]'}
    """
    return {path: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for path, leaf in flatten(tree).items()}


def build_abstract(parameters: Mapping[str, str]) -> Params:
    """The nested tree of `ShapeDtypeStruct`s that `describe` described."""
    return nest({path: _parse(text) for path, text in parameters.items()})


def flatten(tree: Params) -> dict[str, Any]:
    """The leaves by their slash-separated paths; the parts of a quantized weight are leaves."""
    return {tree_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def nest(leaves: Mapping[str, Any]) -> Params:
    """The nested dict that a path per leaf describes.

    >>> nest({"blocks/weight/packed": 1, "blocks/bias": 2})
    {'blocks': {'weight': {'packed': 1}, 'bias': 2}}
    """
    tree: Params = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def difference(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    """The first differences between two descriptions, in words; empty when there is none.

    >>> difference({"a": "float32[2]", "b": "float32[2]"}, {"a": "float32[3]", "b": "float32[2]"})
    'a is float32[3], expected float32[2]'
    """
    lines = [f"{path} is {found.get(path, 'missing')}, expected {text}" for path, text in expected.items()]
    lines = [line for line, (path, text) in zip(lines, expected.items(), strict=True) if found.get(path) != text]
    lines += [f"{path} is not expected" for path in found if path not in expected]
    more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
    return "; ".join(lines[:3]) + more


def installed_versions() -> dict[str, str]:
    """Versions of the packages that decide what a checkpoint looks like."""
    return versions(_PACKAGES)


def _parse(text: str) -> jax.ShapeDtypeStruct:
    dtype, _, shape = text.rstrip("]").partition("[")
    return jax.ShapeDtypeStruct(tuple(map(int, shape.split(","))) if shape else (), jnp.dtype(dtype))


def _read_fields(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such checkpoint")
    try:
        fields = json.loads((folder / FILE_NAME).read_text())
    except FileNotFoundError:
        raise UserError(
            f"{folder}: not a checkpoint (it has no {FILE_NAME}); make one with scripts/convert.py"
        ) from None
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise UserError(f"{folder / FILE_NAME}: damaged; convert the checkpoint again")
    return fields
