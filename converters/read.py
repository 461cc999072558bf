"""Where tensors come from: safetensors files, sharded folders, and PyTorch's own `.pth` files, behind one `Reader`.

A reader knows every tensor's shape and type at once and its values only when asked, so that a conversion holds one
tensor at a time. torch is imported here alone, and only for the files it wrote.
"""

import dataclasses
import functools
import json
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from converters import safetensors_file
from sixbit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a source, not yet read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Reader:
    """The tensors of one or more files by key, in the order on disk."""

    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]

    def keys(self) -> Collection[str]:
        return self.tensors.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self.tensors[key].shape

    def dtype(self, key: str) -> np.dtype:
        return self.tensors[key].dtype

    def read(self, key: str) -> np.ndarray:
        return self.tensors[key].load()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: tensor.shape for key, tensor in self.tensors.items()}


def open_files(paths: Iterable[Path]) -> Reader:
    """One reader over several files; a key that two of them hold is an error."""
    files = tuple(paths)
    tensors: dict[str, Tensor] = {}
    for path in files:
        opened = open_file(path)
        if twice := sorted(tensors.keys() & opened):
            raise UserError(
                f'{path}: "{twice[0]}" is also in another file of this folder; keep one copy of the weights'
            )
        tensors |= opened
    return Reader(files, tensors)


def open_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, whichever format it has."""
    if path.suffix not in _FORMATS:
        raise UserError(f"{path}: not a kind of file that holds weights (kinds: {', '.join(_FORMATS)})")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return _FORMATS[path.suffix](path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that hold a folder's weights: those of its index, or all when there is none."""
    indexes = sorted(folder.glob("*.index.json"))
    if len(indexes) > 1:
        raise UserError(f"{folder}: has {len(indexes)} indexes ({', '.join(path.name for path in indexes)}); keep one")
    if not indexes:
        return tuple(sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")))
    names = sorted(set(_weight_map(indexes[0]).values()))
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing, although {indexes[0].name} names it; download it again")
    return tuple(folder / name for name in names)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise UserError(f"{path}: damaged (not a JSON object)")
    return data


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: damaged (no weight_map)")
    return weight_map


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    return {
        key: Tensor(entry.shape, entry.dtype, functools.partial(safetensors_file.map_tensor, path, entry))
        for key, entry in safetensors_file.read_header(path).items()
    }


def _open_torch(path: Path) -> dict[str, Tensor]:
    try:
        return {
            key: Tensor(tuple(tensor.shape), _numpy_dtype(tensor), functools.partial(_to_numpy, tensor))
            for key, tensor in _load_torch(path).items()
        }
    except TypeError as error:
        raise UserError(f"{path}: holds a number format that is not supported ({error})") from None


def _load_torch(path: Path) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        raise UserError(f'{path}: reading this format needs PyTorch: pip install "sixbit-jax[torch]"') from None
    try:
        # Files from before torch 1.6 are no zip archives and cannot be mapped.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises whatever its unpickler met
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: damaged, or it holds more than tensors ({reason})") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    tensors = {key: value.detach() for key, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise UserError(f"{path}: holds no tensors by name")
    return tensors


def _numpy_dtype(tensor: Any) -> np.dtype:
    name = str(tensor.dtype).removeprefix("torch.")
    return np.dtype(_TORCH_ONLY.get(name, name))


def _to_numpy(tensor: Any) -> np.ndarray:
    import torch

    dtype = _numpy_dtype(tensor)
    if dtype.name not in _TORCH_ONLY:
        return tensor.numpy()
    # numpy does not know the type: pass the bits as integers of the same width.
    bits = {1: torch.uint8, 2: torch.int16}[dtype.itemsize]
    return tensor.view(bits).numpy().view(dtype)


_TORCH_ONLY = {
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}
_FORMATS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    ".safetensors": _open_safetensors,
    ".pth": _open_torch,
    ".pt": _open_torch,
    ".bin": _open_torch,
}
