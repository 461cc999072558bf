"""Checkpoints: a folder with a manifest, one Orbax tree per component, and the tokenizer.

    manifest.json  transformer/  [transformer_2/]  text_encoder/  vae/  tokenizer/

`draft` makes such a folder, whole or not at all; `load` gives a component back as arrays on the default device.
"""

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sixbit_jax.errors import UserError, nearest
from sixbit_jax.manifest import (
    Component,
    Manifest,
    build_abstract,
    describe,
    difference,
    flatten,
    is_checkpoint,
    nest,
    read_manifest,
    write_manifest,
)
from sixbit_jax.shapes import Params
from sixbit_jax.staging import staged

__all__ = ["Draft", "draft", "is_checkpoint", "load", "load_numpy", "read_manifest", "stream"]

TOKENIZER = "tokenizer"
_BATCH_BYTES = 2**30
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclasses.dataclass
class Draft:
    """A checkpoint being written. It becomes one when the `draft` block ends; a failure inside leaves nothing."""

    folder: Path
    components: dict[str, Component] = dataclasses.field(default_factory=dict)

    def add(
        self,
        name: str,
        kind: str,
        config: dict[str, Any],
        dtype: str,
        params: Params,
        recipe: dict[str, Any] | None = None,
    ) -> None:
        """Write one component's parameters; on disk each part of a quantized weight is an array by itself."""
        from sixbit_jax.orbax_trees import save_tree

        save_tree(self.folder / name, nest(flatten(params)))
        self.components[name] = Component(kind, config, dtype, describe(params), recipe)

    def add_tokenizer(self, source: Path) -> None:
        """Copy the two files of a tokenizer folder that `text.load_tokenizer` reads."""
        target = self.folder / TOKENIZER
        target.mkdir()
        for name in _TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)

    def read_back(self, name: str) -> Params:
        """A component as it now stands on disk."""
        return _restore(self.folder / name, build_abstract(self.components[name].parameters))

    def finish(self, pipeline: dict[str, Any], source: dict[str, Any]) -> None:
        """Write the manifest, which is what makes the folder a checkpoint."""
        write_manifest(self.folder, Manifest(self.components, pipeline, source))


@contextlib.contextmanager
def draft(folder: Path, *, overwrite: bool = False) -> Iterator[Draft]:
    """Write a checkpoint to `folder`; an existing one is replaced only with `overwrite`."""
    with staged(folder, overwrite=overwrite, replaceable=is_checkpoint) as partial:
        yield Draft(partial)


def load(folder: Path, component: str, abstract: Params | None = None) -> tuple[dict[str, Any], Params]:
    """The configuration and parameters of a component, as arrays on the default device.

    `abstract` is the tree that the caller's model code expects: any difference is refused before data is read.
    """
    entry = _entry(folder, component)
    if abstract is not None and (text := difference(describe(abstract), entry.parameters)):
        raise UserError(f"{folder / component}: does not fit its configuration: {text}; convert the checkpoint again")
    sharding = jnp.zeros(()).sharding  # where new arrays land: the default device
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), build_abstract(entry.parameters)
    )
    return entry.config, _restore(folder / component, wanted)


def load_numpy(folder: Path, component: str) -> tuple[dict[str, Any], Params]:
    """Like `load`, as numpy arrays in host memory."""
    entry = _entry(folder, component)
    return entry.config, _restore(folder / component, build_abstract(entry.parameters))


def stream(folder: Path, component: str) -> Iterator[tuple[str, np.ndarray]]:
    """Path and values of one parameter after the other: a gigabyte of them, or a larger one, is in memory at a time."""
    for batch in _batches(_entry(folder, component).parameters):
        restored = flatten(_restore(folder / component, build_abstract(batch), partial=True))
        while restored:
            path = next(iter(restored))
            yield path, restored.pop(path)


def _batches(parameters: dict[str, str]) -> Iterator[dict[str, str]]:
    """Parameters in groups that are worth the start of a read."""
    batch: dict[str, str] = {}
    room = _BATCH_BYTES
    for path, leaf in flatten(build_abstract(parameters)).items():
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        if batch and size > room:
            yield batch
            batch, room = {}, _BATCH_BYTES
        batch[path] = parameters[path]
        room -= size
    yield batch


def _entry(folder: Path, component: str) -> Component:
    components = read_manifest(folder).components
    if component not in components:
        raise UserError(f"{folder}: the checkpoint has no {component}; {nearest(component, components)}")
    if not (folder / component).is_dir():
        raise UserError(f"{folder / component}: missing, although the manifest names it; convert the checkpoint again")
    return components[component]


def _restore(path: Path, abstract: Params, *, partial: bool = False) -> Params:
    from sixbit_jax.orbax_trees import restore_tree

    try:
        params = restore_tree(path, abstract, partial=partial)
    except Exception as error:  # tensorstore and Orbax raise many kinds for damaged files
        if _is_out_of_memory(error):
            raise
        raise UserError(f"{path}: files are damaged or missing; convert the checkpoint again") from error
    if text := difference(describe(abstract), describe(params)):
        raise UserError(f"{path}: differs from the manifest: {text}; convert the checkpoint again")
    return params


def _is_out_of_memory(error: BaseException | None) -> bool:
    """On the host or on the device, which says so in words, under whatever it was wrapped in."""
    while error is not None:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
