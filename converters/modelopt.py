"""NVFP4 weights as NVIDIA's ModelOpt exports them, from and to safetensors files.

    <layer>.weight           u8   (…, n, k / 2)    two E2M1 codes a byte, low nibble first
    <layer>.weight_scale     e4m3 (…, n, k / 16)   one per block, in the order of the blocks
    <layer>.weight_scale_2   f32  ()               one per tensor

That is `NVFP4Tensor` array by array. Other writers fill the same shapes differently; `modelopt_checks` says what of
that can be seen, and refuses it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from converters.modelopt_checks import refuse_other_layouts, refuse_other_values, refuse_swizzled, swizzle_evidence
from converters.read import Reader, open_files
from converters.safetensors_file import write_file
from sixbit_jax.errors import UserError
from sixbit_jax.formats import NVFP4Tensor

PARTS = ("weight", "weight_scale", "weight_scale_2")
# What the other exporter of NVFP4 files calls its parts.
_COMPRESSED_TENSORS = ("weight_packed", "weight_global_scale")


def read_modelopt(
    files: Path | Iterable[Path], reference: Mapping[str, np.ndarray] | None = None
) -> dict[str, NVFP4Tensor]:
    """The NVFP4 weights of one or more files, by layer (the key without `.weight`). Dense tensors are left out.

    `reference` holds dense weights by layer, of as many layers as the caller has: what is read must resemble them.
    It is the only way to notice swapped nibbles.

    >>> import tempfile
    >>> from sixbit_jax.formats import quantize_nvfp4
    >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> write_modelopt(path, {"blocks.0.ffn": quantize_nvfp4(jnp.ones((2, 32)))})
    >>> {layer: t.shape for layer, t in read_modelopt(path).items()}
    {'blocks.0.ffn': (2, 32)}
    """
    reader = open_files([files] if isinstance(files, Path) else files)
    layers = sorted({key.removesuffix(".weight_scale_2") for key in reader.tensors if key.endswith(".weight_scale_2")})
    if not layers:
        raise UserError(f"{reader.files[0]}: holds no NVFP4 weights of ModelOpt{_hint(reader)}")
    tensors = {layer: _read_layer(reader, layer, (reference or {}).get(layer)) for layer in layers}
    refuse_swizzled(str(reader.files[0]), [swizzle_evidence(scale) for t in tensors.values() for scale in _scales(t)])
    return tensors


def write_modelopt(path: Path, tensors: Mapping[str, NVFP4Tensor]) -> None:
    """Write layers to one file; `read_modelopt` gives them back, bit for bit (its example writes one)."""
    arrays = {f"{layer}.{part}": array for layer, t in tensors.items() for part, array in to_modelopt(t).items()}
    write_file(path, arrays.items(), {key: (array.dtype, array.shape) for key, array in arrays.items()})


def from_modelopt(
    parts: Mapping[str, np.ndarray], reference: np.ndarray | None = None, *, name: str = "weight"
) -> NVFP4Tensor:
    """One tensor from its three arrays, refused if they are not laid out as above.

    >>> import jax.numpy as jnp
    >>> from sixbit_jax.formats import quantize_nvfp4
    >>> t = quantize_nvfp4(jnp.ones((2, 32)))
    >>> from_modelopt(to_modelopt(t)).shape
    (2, 32)
    """
    missing = [part for part in PARTS if part not in parts]
    if missing:
        raise UserError(f"{name}: {missing[0]} is missing (an NVFP4 weight has {', '.join(PARTS)})")
    weight, weight_scale, weight_scale_2 = (np.asarray(parts[part]) for part in PARTS)
    refuse_other_layouts(name, weight, weight_scale, weight_scale_2)
    if reference is not None:
        refuse_other_values(name, weight, weight_scale, weight_scale_2, reference)
    scale = jnp.asarray(weight_scale_2).reshape(weight_scale_2.shape if weight_scale_2.size > 1 else ())
    return NVFP4Tensor(jnp.asarray(weight), jnp.asarray(weight_scale), scale)


def to_modelopt(t: NVFP4Tensor) -> dict[str, np.ndarray]:
    """The three arrays of a tensor.

    >>> import jax.numpy as jnp
    >>> from sixbit_jax.formats import quantize_nvfp4
    >>> {key: array.shape for key, array in to_modelopt(quantize_nvfp4(jnp.ones((2, 32)))).items()}
    {'weight': (2, 16), 'weight_scale': (2, 2), 'weight_scale_2': ()}
    """
    if t.tensor_scale.ndim > max(t.ndim - 2, 0):
        raise UserError("ModelOpt's layout has one tensor scale per matrix, not one per row")
    scale = np.asarray(t.block_scale).astype(ml_dtypes.float8_e4m3fn)
    return dict(zip(PARTS, (np.asarray(t.packed), scale, np.asarray(t.tensor_scale)), strict=True))


def _read_layer(reader: Reader, layer: str, reference: np.ndarray | None) -> NVFP4Tensor:
    keys = {part: f"{layer}.{part}" for part in PARTS}
    parts = {part: np.asarray(reader.read(key)) for part, key in keys.items() if key in reader.tensors}
    return from_modelopt(parts, reference, name=f"{reader.files[0]}: {layer}")


def _scales(t: NVFP4Tensor) -> np.ndarray:
    """The block scales of every matrix (…, n, g)."""
    scale = np.asarray(t.block_scale)
    return scale.reshape(-1, *scale.shape[-2:])


def _hint(reader: Reader) -> str:
    if any(key.endswith(_COMPRESSED_TENSORS) for key in reader.tensors):
        return "; it is of compressed-tensors, whose global scale is the reciprocal"
    return " (no key ends in .weight_scale_2)"
