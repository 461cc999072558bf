"""Numbers that compare videos or latents with a reference, as the literature defines them.

Videos come as bytes or in [-1, 1] and are compared in [0, 1].
"""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float
from scipy import ndimage

from sixbit_jax.evaluate.pixels import Video, to_unit

# Wang et al. 2004: a Gaussian window of 11 pixels, and the two stabilisers for a range of 1.
_SIGMA, _RADIUS = 1.5, 5
_C1, _C2 = 0.01**2, 0.03**2

Latents = Float[np.ndarray, "..."] | Float[jax.Array, "..."]


def psnr(video: Video, reference: Video) -> float:
    """Peak signal-to-noise ratio of the whole video in dB; infinite when both are the same."""
    error = float(np.mean(np.square(to_unit(video) - to_unit(reference), dtype=np.float64)))
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def ssim(video: Video, reference: Video) -> float:
    """Structural similarity: of each channel of each frame where the window fits, then averaged. 1 is equal."""
    x, y = to_unit(video).astype(np.float64), to_unit(reference).astype(np.float64)
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    return float(np.mean(likeness / ((mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2))))


def relative_error(latents: Latents, reference: Latents) -> float:
    """Euclidean distance over the length of the reference."""
    x, y = np.asarray(latents, np.float64), np.asarray(reference, np.float64)
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


def pairwise_distance(videos: Sequence[Video]) -> float:
    """Root-mean-square difference between two of the videos, averaged over all pairs: 0 when they have collapsed."""
    units = [to_unit(video) for video in videos]
    pairs = [(x, y) for index, x in enumerate(units) for y in units[:index]]
    return float(np.mean([np.sqrt(np.mean(np.square(x - y))) for x, y in pairs]))


def _blur(frames: Float[np.ndarray, "t h w 3"]) -> Float[np.ndarray, "t y x 3"]:
    """The windowed mean around each pixel whose window lies inside the frame."""
    offsets = np.arange(-_RADIUS, _RADIUS + 1)
    window = np.exp(-0.5 * np.square(offsets / _SIGMA))
    window /= window.sum()
    blurred = ndimage.correlate1d(ndimage.correlate1d(frames, window, axis=1), window, axis=2)
    return blurred[:, _RADIUS:-_RADIUS, _RADIUS:-_RADIUS]
