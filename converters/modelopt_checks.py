"""What can be told about the layout of a packed NVFP4 weight, and what cannot.

Shapes and types give most away: scales padded to the tiles of a tensor-core kernel, blocks of 32, scales in another
type. Two things they do not show:

- *Swizzled scales without padding* (n a multiple of 128, k of 64): the same shape, another order. Trained weights have
  rows and input channels of different size, so the true order lets row and column means explain much of the scales'
  variance, and a shuffled order does not. If undoing the swizzle explains more, the scales are swizzled. One matrix
  may be too small to tell; a file is not (tiny-wan's 105 weights: 80 standard deviations). Weights without structure
  (white noise, or k = 64) look the same both ways, and pass.
- *Swapped nibbles* exchange neighbouring inputs of the layer. Every such file is a valid one of another layer: only a
  dense reference tells.
"""

from collections.abc import Sequence

import ml_dtypes
import numpy as np

from sixbit_jax.errors import UserError

_BLOCK = 16
# The tile of scales that Blackwell's tensor cores read: 128 rows of 4.
_ROWS, _COLUMNS = 128, 4
# White noise exceeds this once in a thousand million files.
_DEVIATIONS = 6.0
# NVFP4 leaves about 20 dB; a wrong order leaves less than 3.
_LEAST_DB = 10.0
_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def refuse_other_layouts(name: str, weight: np.ndarray, weight_scale: np.ndarray, weight_scale_2: np.ndarray) -> None:
    """Raise if the three arrays are not those of ModelOpt, as far as they show it."""
    if weight.dtype != np.uint8 or weight.ndim < 2:
        raise UserError(f"{name}: weight is {weight.dtype} {weight.shape}; packed NVFP4 is uint8 (n, k/2)")
    expected = (*weight.shape[:-1], weight.shape[-1] * 2 // _BLOCK)
    if weight.shape[-1] * 2 % _BLOCK:
        raise UserError(
            f"{name}: weight {weight.shape} has rows of {weight.shape[-1] * 2}, not whole blocks of {_BLOCK}"
        )
    if (reason := _wrong_scale(weight_scale, expected)) is not None:
        raise UserError(f"{name}: weight_scale {reason}; expected float8_e4m3fn {expected}")
    if (reason := _wrong_tensor_scale(weight_scale_2, weight.shape[:-2])) is not None:
        raise UserError(f"{name}: weight_scale_2 {reason}")
    refuse_swizzled(name, [swizzle_evidence(matrix) for matrix in weight_scale.reshape(-1, *expected[-2:])])


def refuse_other_values(
    name: str, weight: np.ndarray, weight_scale: np.ndarray, weight_scale_2: np.ndarray, reference: np.ndarray
) -> None:
    """Raise if the values do not resemble `reference`, and say which other order of the file would."""
    shape = (*weight.shape[:-1], weight.shape[-1] * 2)
    if reference.shape != shape:
        raise UserError(f"{name}: its reference has shape {reference.shape}, it has {shape}")
    fits = lambda weight, scale: _decibels(_dense(weight, scale, weight_scale_2), reference)
    as_read = fits(weight, weight_scale)
    if as_read >= _LEAST_DB:
        return
    if fits(swap_nibbles(weight), weight_scale) >= _LEAST_DB:
        raise UserError(f"{name}: its nibbles are swapped: the first of two codes must be the low one")
    if weight.ndim == 2 and fits(weight, _unswizzle(weight_scale)) >= _LEAST_DB:
        raise UserError(f"{name}: its scales are swizzled (a tensor-core tiling of 128 x 4); export them without")
    raise UserError(f"{name}: does not resemble its reference ({as_read:.1f} dB; NVFP4 leaves about 20)")


def swap_nibbles(packed: np.ndarray) -> np.ndarray:
    """The bytes with their two codes exchanged."""
    return (packed << 4) | (packed >> 4)


def swizzle(scale: np.ndarray) -> np.ndarray:
    """Scales (n, g) in the order of the tensor-core tiles, padded with zeros: (n up to 128, g up to 4)."""
    rows, columns = (-(-size // tile) for size, tile in zip(scale.shape, (_ROWS, _COLUMNS), strict=True))
    padded = np.zeros((rows * _ROWS, columns * _COLUMNS), scale.dtype)
    padded[: scale.shape[0], : scale.shape[1]] = scale
    tiles = padded.reshape(rows, 4, _ROWS // 4, columns, _COLUMNS)
    return tiles.transpose(0, 3, 2, 1, 4).reshape(padded.shape)


def _unswizzle(scale: np.ndarray) -> np.ndarray:
    rows, columns = scale.shape[0] // _ROWS, scale.shape[1] // _COLUMNS
    if rows * _ROWS != scale.shape[0] or columns * _COLUMNS != scale.shape[1]:
        return scale
    tiles = scale.reshape(rows, columns, _ROWS // 4, 4, _COLUMNS)
    return tiles.transpose(0, 3, 2, 1, 4).reshape(scale.shape)


def _wrong_scale(scale: np.ndarray, expected: tuple[int, ...]) -> str | None:
    padded = -(-expected[-2] // _ROWS) * _ROWS * -(-expected[-1] // _COLUMNS) * _COLUMNS
    if scale.size == padded and scale.shape != expected:
        return f"{scale.shape} is padded to tiles of 128 x 4: swizzled for a tensor-core kernel, export it without"
    if scale.shape == (*expected[:-1], expected[-1] // 2):
        return f"{scale.shape} has one scale per 32 values: this is MXFP4, not NVFP4"
    if scale.dtype != ml_dtypes.float8_e4m3fn or scale.shape != expected:
        return f"is {scale.dtype} {scale.shape}"
    values = scale.astype(np.float32)
    if not (values >= 0).all():
        return f"holds {values.ravel()[np.argmin(values >= 0)]}, which is no scale"
    return None


def _wrong_tensor_scale(scale: np.ndarray, batch: tuple[int, ...]) -> str | None:
    if scale.dtype != np.float32 or (scale.size != 1 and scale.shape != batch):
        return f"is {scale.dtype} {scale.shape}; expected one float32 per matrix"
    if not (np.isfinite(scale) & (scale > 0)).all():
        return f"is {scale.min()}; it must be finite and positive"
    return None


def swizzle_evidence(scale: np.ndarray) -> float:
    """How much better row and column means explain the scales (n, g) of a matrix after undoing the swizzle.

    In standard deviations of what white noise shows, so that the evidence of several matrices adds up. Zero where a
    swizzle would show in the shape, or not at all.
    """
    rows, columns = scale.shape
    logarithms = np.log2(np.maximum(scale.astype(np.float64), 2.0**-9))
    if rows % _ROWS or columns % _COLUMNS or not logarithms.var():
        return 0.0
    # Of the means of n rows of g values, and of g columns of n, for two independent orders.
    deviation = np.sqrt(2 * (2 / rows / columns**2 + 2 / columns / rows**2))
    return float((_explained(_unswizzle(logarithms)) - _explained(logarithms)) / deviation)


def refuse_swizzled(name: str, evidence: Sequence[float]) -> None:
    """Raise if the matrices together leave no doubt."""
    if sum(evidence) > _DEVIATIONS * np.sqrt(len(evidence)):
        hint = "undoing a tensor-core tiling of 128 x 4 puts rows and columns in order"
        raise UserError(f"{name}: weight_scale looks swizzled: {hint}; export it without")


def _explained(x: np.ndarray) -> float:
    """The share of the variance in the means of rows and columns."""
    return float((x.mean(axis=1).var() + x.mean(axis=0).var()) / x.var())


def _dense(weight: np.ndarray, scale: np.ndarray, tensor_scale: np.ndarray) -> np.ndarray:
    codes = np.stack([weight & 15, weight >> 4], axis=-1).reshape(*weight.shape[:-1], -1, _BLOCK)
    blocks = _VALUES[codes] * scale.astype(np.float32)[..., None]
    values = blocks.reshape(*weight.shape[:-1], -1)
    return values * tensor_scale.reshape(*tensor_scale.shape, *(1,) * (values.ndim - tensor_scale.ndim))


def _decibels(values: np.ndarray, reference: np.ndarray) -> float:
    """How far the error lies below the reference."""
    exact = reference.astype(np.float64)
    return float(10 * np.log10((exact**2).sum() / max(((values - exact) ** 2).sum(), 1e-300)))
