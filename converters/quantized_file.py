"""Quantized tensors in plain safetensors files that any reader can open.

    <name>.packed  <name>.block_scale  <name>.tensor_scale     NVFP4Tensor
    <name>.data    <name>.scale                                Int8Tensor
    <name>.packed  <name>.scale                                Int4Tensor
    <name>.weight.…, and of <name>.smooth  <name>.zero  <name>.down  <name>.up those there are: QuantizedWeight
    <name>                                                     a dense array

Arrays are stored as they are in memory (docs/formats.md has the bits). The file's metadata, under "quantized", is JSON:
the type of every name that is not dense, with the settings that are no arrays.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from converters.read import Reader, open_files
from converters.safetensors_file import read_metadata, write_file
from sixbit_jax.errors import UserError
from sixbit_jax.formats import Int4Tensor, Int8Tensor, NVFP4Tensor, QuantizedWeight, check_parts

_FORMATS = {kind.__name__: kind for kind in (NVFP4Tensor, Int8Tensor, Int4Tensor)}


def write_quantized(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write arrays and quantized tensors by name. The arrays of `read_quantized` have the same bits.

    >>> import tempfile
    >>> from sixbit_jax.quantizers import QuaRot
    >>> path = Path(tempfile.mkdtemp()) / "weights.safetensors"
    >>> write_quantized(path, {"ffn": QuaRot()(jnp.ones((2, 128))), "bias": jnp.zeros(2)})
    >>> list(open_files([path]).keys())
    ['ffn.weight.packed', 'ffn.weight.block_scale', 'ffn.weight.tensor_scale', 'bias']
    >>> read_quantized(path)["ffn"].rotated
    128
    """
    arrays = {key: np.asarray(array) for name, value in tensors.items() for key, array in _arrays(name, value)}
    described = {key: (array.dtype, array.shape) for key, array in arrays.items()}
    kinds = {name: kind for name, value in tensors.items() if (kind := _kind(value)) is not None}
    write_file(path, arrays.items(), described, {"quantized": json.dumps(kinds)})


def read_quantized(path: Path) -> dict[str, Any]:
    """What `write_quantized` wrote (its example reads), in the order of its names' first arrays."""
    reader = open_files([path])
    try:
        kinds = json.loads(read_metadata(path)["quantized"])
    except (KeyError, ValueError):
        raise UserError(f'{path}: its metadata has no "quantized" entry; it was written by another program') from None
    # The longest name last, so that it wins where one name begins with another.
    inside = {key: name for name in sorted(kinds, key=len) for key in reader.tensors if key.startswith(f"{name}.")}
    # Those without a single array come last, to be named as missing.
    names = dict.fromkeys([*(inside.get(key, key) for key in reader.tensors), *kinds])
    return {name: _read_checked(reader, name, kinds[name]) if name in kinds else _array(reader, name) for name in names}


def _arrays(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, QuantizedWeight):
        yield from _arrays(f"{name}.weight", value.weight)
        yield from ((f"{name}.{part}", array) for part, array in _parts(value).items())
    elif type(value).__name__ in _FORMATS:
        yield from ((f"{name}.{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value))
    else:
        yield name, value


def _parts(value: QuantizedWeight) -> dict[str, Any]:
    down, up = value.low_rank or (None, None)
    parts = {"smooth": value.smooth, "zero": value.zero, "down": down, "up": up}
    return {part: array for part, array in parts.items() if array is not None}


def _kind(value: Any) -> dict[str, Any] | None:
    """What the metadata says of a value."""
    if isinstance(value, QuantizedWeight):
        settings = {"rotated": value.rotated, "act_group": value.act_group}
        return {"type": "QuantizedWeight", "weight": type(value.weight).__name__, **settings}
    name = type(value).__name__
    return {"type": name} if name in _FORMATS else None


def _read_checked(reader: Reader, name: str, kind: Mapping[str, Any]) -> Any:
    tensor = _read(reader, name, kind)
    try:
        check_parts(tensor, name)
    except (TypeError, ValueError) as error:
        raise UserError(f"{reader.files[0]}: {error}") from None
    return tensor


def _read(reader: Reader, name: str, kind: Mapping[str, Any]) -> Any:
    if kind["type"] != "QuantizedWeight":
        return _read_tensor(reader, name, kind["type"])
    part = lambda part: _array(reader, f"{name}.{part}") if f"{name}.{part}" in reader.tensors else None
    down = part("down")
    return QuantizedWeight(
        _read_tensor(reader, f"{name}.weight", kind["weight"]),
        smooth=part("smooth"),
        zero=part("zero"),
        low_rank=None if down is None else (down, _array(reader, f"{name}.up")),
        rotated=kind["rotated"],
        act_group=kind["act_group"],
    )


def _read_tensor(reader: Reader, name: str, kind: str) -> Any:
    if kind not in _FORMATS:
        raise UserError(f'{reader.files[0]}: "{name}" is a {kind}, which this version does not know')
    return _FORMATS[kind](*(_array(reader, f"{name}.{field.name}") for field in dataclasses.fields(_FORMATS[kind])))


def _array(reader: Reader, key: str) -> Any:
    if key not in reader.tensors:
        raise UserError(f'{reader.files[0]}: "{key}" is missing')
    return jnp.asarray(reader.read(key))
