"""Orbax, for one tree: how parameters lie on disk. Imported only when something saves or loads: that takes a second.

Data is stored as it lies in memory, one chunk per parameter and uncompressed: saving then needs no second copy of it.
"""

import asyncio
import concurrent.futures
import contextlib
import gc
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from sixbit_jax.shapes import Params


def save_tree(path: Path, params: Params) -> None:
    """Write a tree of arrays to a new folder. Uninterruptible: Ctrl-C takes effect when the tree is written."""
    writer = _PatientWriter()
    # The pool waits for its thread, also on Ctrl-C: nothing must be written any more when the folder is removed.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        error = pool.submit(_save, path, jax.tree.map(np.asarray, params), writer).exception()
    if error := writer.error or error:
        raise error


def restore_tree(path: Path, abstract: Params, *, partial: bool = False) -> Params:
    """Read a tree of this structure; leaves that carry a sharding become jax arrays, the others numpy arrays.

    With `partial` the structure may lack what the folder has.
    """
    handlers = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, _PatientNumpyReader()), (jax.Array, _PatientArrayReader(array_metadata_store=None))
    )
    handler = ocp.PyTreeCheckpointHandler(
        restore_concurrent_gb=_concurrent_gb(abstract), type_handler_registry=handlers
    )
    wanted = jax.tree.map(_restore_arguments, abstract)
    arguments = ocp.args.PyTreeRestore(item=abstract, restore_args=wanted, partial_restore=partial)
    with _quiet(), ocp.Checkpointer(handler) as checkpointer:
        params = checkpointer.restore(path.absolute(), args=arguments)
    gc.collect()  # Orbax leaves cycles behind that hold its host buffers: gigabytes
    return params


def _save(path: Path, params: Params, writer: "_PatientWriter") -> None:
    handlers = ocp.type_handlers.create_type_handler_registry((np.ndarray, writer))
    # A file size of 0 is no limit; a limit would cut large parameters into chunks, and chunks are copied.
    arguments = ocp.args.PyTreeSave(params, ocdbt_target_data_file_size=0)
    with _quiet():
        handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=handlers)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(path.absolute(), args=arguments)


class _PatientWriter(ocp.type_handlers.NumpyHandler):
    """Keeps the first error until all arrays are done with.

    Orbax writes all at once and leaves when the first fails, with the others still writing behind its back.
    """

    def __init__(self) -> None:
        # Orbax copies host arrays in case they change while it writes; nothing changes them here.
        super().__init__(deepcopy_host_arrays=False)
        self.error: Exception | None = None

    async def _open_and_write(self, value: np.ndarray, *arguments: Any) -> None:
        try:
            await super()._open_and_write(value, *arguments)
        except Exception as error:
            self.error = self.error or error


class _PatientReader:
    """Reads all arrays at once, and leaves with the first error when all are done with.

    Orbax leaves at once, and the reads that are still under way then end in threads of their own: they complain on
    stderr some time later, or take the interpreter down.
    """

    async def deserialize(self, infos: Sequence[Any], args: Sequence[ocp.RestoreArgs] | None = None) -> Sequence[Any]:
        read: Any = super().deserialize  # type: ignore[misc]  # of the handler beside this class
        arguments = [None] * len(infos) if args is None else [[one] for one in args]
        reads = [read([info], argument) for info, argument in zip(infos, arguments, strict=True)]
        outcomes = await asyncio.gather(*reads, return_exceptions=True)
        arrays = []
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            arrays += outcome
        return arrays


class _PatientNumpyReader(_PatientReader, ocp.type_handlers.NumpyHandler):
    pass


class _PatientArrayReader(_PatientReader, ocp.type_handlers.ArrayHandler):
    pass


def _restore_arguments(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
    if leaf.sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)


def _concurrent_gb(abstract: Params) -> int:
    """How much may be on its way through host memory at once: room for the largest parameter, not for the model."""
    largest = max(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
    return max(4, 3 * math.ceil(largest / 1e9))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax tells the absl logger about its own workings; what matters to a user is raised."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
