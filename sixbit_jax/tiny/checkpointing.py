"""Trees of arrays in one .npz file each, with facts beside them as JSON: what a training stage leaves for the next.

A file is replaced by a rename, so a killed run leaves the previous one whole.
"""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sixbit_jax.errors import UserError

_FACTS = "__facts__"


def save_tree(path: Path, tree: Any, facts: dict[str, Any]) -> None:
    """Write the leaves (dtypes that numpy knows) under their paths in the tree."""
    leaves = {
        jax.tree_util.keystr(where): np.asarray(leaf) for where, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **leaves, **{_FACTS: np.array(json.dumps(facts))})
    os.replace(partial, path)


def load_facts(path: Path) -> dict[str, Any]:
    """The facts alone."""
    with _open(path) as file:
        return json.loads(str(file[_FACTS]))


def load_tree(path: Path, like: Any) -> Any:
    """The saved tree, which must have the structure, shapes and dtypes of `like` (arrays or ShapeDtypeStructs)."""
    with _open(path) as file:
        return jax.tree_util.tree_map_with_path(lambda where, leaf: _leaf(path, file, where, leaf), like)


def _open(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file of this command"
        raise UserError(f"--work: {path}: {reason}; run the stage before this one") from None


def _leaf(path: Path, file: Any, where: Any, like: Any) -> jax.Array:
    key = jax.tree_util.keystr(where)
    if key not in file or file[key].shape != like.shape or file[key].dtype != like.dtype:
        raise UserError(f"--work: {path} was written for other sizes (at {key}); choose another folder")
    return jnp.asarray(file[key])
