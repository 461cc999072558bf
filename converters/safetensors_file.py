"""The safetensors format, read and written: eight bytes of header length, a JSON header, then raw data.

Own code because bf16 and f8 tensors must become numpy arrays (through `ml_dtypes`), every tensor must be mapped alone
so that its pages go when it does, and a truncated download must be named in one line.
"""

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from sixbit_jax.errors import UserError

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
# The format's own limit; a longer header means that this is another kind of file.
_MAX_HEADER = 100_000_000


class Entry(NamedTuple):
    """Where one tensor lies in its file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a file in the order of their data."""
    header, data = _read_json(path)
    header.pop("__metadata__", None)
    entries = {key: _entry(path, key, fields, data) for key, fields in header.items()}
    _refuse_truncated(path, entries, path.stat().st_size)
    return dict(sorted(entries.items(), key=lambda item: item[1].offset))


def read_metadata(path: Path) -> dict[str, str]:
    """The strings that a file carries beside its tensors."""
    metadata = _read_json(path)[0].get("__metadata__", {})
    return metadata if isinstance(metadata, dict) else {}


def map_tensor(path: Path, entry: Entry) -> np.ndarray:
    """One tensor, mapped read-only; its memory is the file's and goes with the array."""
    if math.prod(entry.shape) == 0:
        return np.empty(entry.shape, entry.dtype)
    return np.memmap(path, entry.dtype, mode="r", offset=entry.offset, shape=entry.shape)


def write_file(
    path: Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    described: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Stream `tensors` to a file. `described` has the same keys in the same order: the header goes first."""
    with path.open("wb") as file:
        file.write(_header(described, metadata or {}))
        for key, tensor in tensors:
            if (tensor.dtype, tensor.shape) != described[key]:
                raise ValueError(f"{key}: described as {described[key]}, is {(tensor.dtype, tensor.shape)}")
            # As bytes: the buffer protocol does not know the types of ml_dtypes.
            file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)


def _read_json(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and where the data starts."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= _MAX_HEADER:
            raise UserError(f"{path}: not a safetensors file")
        if 8 + length > size:
            raise UserError(f"{path}: truncated: its header needs {8 + length} bytes, the file has {size}")
        return _parse(path, file.read(length)), 8 + length


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise UserError(f"{path}: not a safetensors file (its header is not JSON)")
    return header


def _entry(path: Path, key: str, fields: Any, data: int) -> Entry:
    try:
        begin, end = fields["data_offsets"]
        name, shape = fields["dtype"], tuple(int(n) for n in fields["shape"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f'{path}: the header entry of "{key}" is damaged') from None
    if name not in _DTYPES:
        raise UserError(
            f'{path}: "{key}" has the type {name}, which is not supported (supported: {", ".join(_DTYPES)})'
        )
    dtype = np.dtype(_DTYPES[name])
    if end - begin != math.prod(shape) * dtype.itemsize or begin < 0:
        raise UserError(f'{path}: the header entry of "{key}" is damaged: {end - begin} bytes for {name}{list(shape)}')
    return Entry(dtype, shape, data + begin)


def _refuse_truncated(path: Path, entries: Mapping[str, Entry], size: int) -> None:
    needed = max(
        (entry.offset + math.prod(entry.shape) * entry.dtype.itemsize for entry in entries.values()), default=0
    )
    if needed > size:
        raise UserError(f"{path}: truncated: its tensors need {needed} bytes, the file has {size}; download it again")


def _header(described: Mapping[str, tuple[np.dtype, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for key, (dtype, shape) in described.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data starts aligned to eight bytes
    return struct.pack("<Q", len(text)) + text
