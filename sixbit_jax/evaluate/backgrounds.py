"""The colour and pattern of what is behind the objects, from the average over time of the pixels that show it."""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from sixbit_jax.evaluate.colours import nearest_background
from sixbit_jax.evaluate.tracks import Track

_MARGIN = 3  # pixels around objects that are not trusted
# Limits between the kinds, each in the middle of a gap between what the world's kinds measure.
_PLAIN = 0.05  # deviation of the brightness, relative: plain 0.01, all others from 0.12
_SLOPE = 0.8  # share of the variance that a plane explains: gradients 0.99, patterns 0.02
_LEAST_WAVES = 3  # slower waves across the picture are the window, and the holes where objects stand
_ONE_WAY = 0.65  # anisotropy of the spectrum: stripes from 0.87, the others up to 0.4
_LOBE = np.cos(np.pi / 6)  # within 15 degrees, of four ways 90 degrees apart
_FOUR_WAYS = 0.54  # share of the power along the axes (dots) or diagonals (checkers): from 0.62, noise up to 0.46


def read_background(video: UInt8[np.ndarray, "t h w 3"], tracks: list[Track]) -> tuple[str, str]:
    """The kind of background and its colour, in the words of `names`."""
    hidden = np.zeros(video.shape[:3], bool)
    for track in tracks:
        hidden |= track.masks
    seen = ~ndimage.binary_dilation(hidden, ndimage.generate_binary_structure(2, 2)[None], iterations=_MARGIN)
    picture, known = _average(video, seen)
    if not known.any():
        return "plain", nearest_background(video.mean((0, 1, 2), dtype=np.float32) / 255)
    return _read_pattern(picture.mean(-1), known), nearest_background(picture[known].mean(0))


def _average(
    video: UInt8[np.ndarray, "t h w 3"], seen: Bool[np.ndarray, "t h w"]
) -> tuple[Float[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """The background in [0, 1], and where it was ever seen."""
    total = np.einsum("thwc,thw->hwc", video, seen, dtype=np.float32, casting="unsafe")
    times = seen.sum(0)
    return total / np.maximum(times, 1)[..., None].astype(np.float32) / 255, times > 0


def _read_pattern(brightness: Float[np.ndarray, "h w"], known: Bool[np.ndarray, "h w"]) -> str:
    values = brightness / max(brightness[known].mean(), 1 / 255) - 1
    if values[known].std() < _PLAIN:
        return "plain"
    plane = _plane(values, known)
    if np.corrcoef(values[known], plane[known])[0, 1] ** 2 > _SLOPE:
        return "gradient"
    power, angle = _spectrum(np.where(known, values - values[known].mean(), 0))
    if abs(np.average(np.exp(2j * angle), weights=power)) > _ONE_WAY:
        return "striped"
    if np.average(abs(np.cos(2 * angle)) > _LOBE, weights=power) > _FOUR_WAYS:
        return "dotted"
    if np.average(abs(np.sin(2 * angle)) > _LOBE, weights=power) > _FOUR_WAYS:
        return "checkered"
    return "noisy"


def _plane(values: Float[np.ndarray, "h w"], known: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """The least-squares plane through the known values."""
    rows, columns = np.indices(values.shape)
    design = np.stack([rows, columns, np.ones_like(rows)], -1).astype(np.float32)
    solution, *_ = np.linalg.lstsq(design[known], values[known], rcond=None)
    return design @ solution


def _spectrum(values: Float[np.ndarray, "h w"]) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Power of the waves in a picture, and the direction each runs in."""
    window = np.outer(np.hanning(values.shape[0]), np.hanning(values.shape[1]))
    power = np.abs(np.fft.fft2(values * window)) ** 2
    y, x = np.meshgrid(*(np.fft.fftfreq(size) * min(values.shape) for size in values.shape), indexing="ij")
    power[np.hypot(y, x) < _LEAST_WAVES] = 0
    return power, np.arctan2(y, x)
