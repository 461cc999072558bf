"""The two forms of a video: bytes in 0 to 255, as files hold it, and numbers in [-1, 1], as models make it."""

from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Float, UInt8

Video: TypeAlias = UInt8[np.ndarray, "t h w 3"] | Float[np.ndarray, "t h w 3"] | Float[jax.Array, "t h w 3"]


def to_bytes(video: Video) -> UInt8[np.ndarray, "t h w 3"]:
    """Either form as bytes, rounded."""
    pixels = np.asarray(video)
    if pixels.dtype == np.uint8:
        return pixels
    return np.clip(np.rint((pixels.astype(np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def to_unit(video: Video) -> Float[np.ndarray, "t h w 3"]:
    """Either form as numbers in [0, 1]."""
    pixels = np.asarray(video)
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / 255
    return np.clip((pixels.astype(np.float32) + 1) / 2, 0, 1)
