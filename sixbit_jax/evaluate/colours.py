"""Which pixels have the colour of an object, and which.

Every colour a camera could see is looked up in a table made once: the nearest shade, by perceptual distance, among
those the world paints with.
"""

import functools

import numpy as np
from jaxtyping import Float, UInt8

from sixbit_jax.tiny import names

NO_OBJECT = len(names.COLOURS)

_BITS = 5  # of each channel that the table tells apart
_LEVELS = 1 << _BITS
# sRGB to CIE XYZ, and the white of daylight.
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32)
_WHITE = np.array([0.9505, 1.0, 1.089], np.float32)
# Shades between the darkest and the brightest that a background has.
_BACKGROUND_SHADES = np.linspace(*names.GRADIENT_SHADES, 5, dtype=np.float32)


def label_colours(video: UInt8[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "t h w"]:
    """The object colour of each pixel, as an index; `NO_OBJECT` where it looks like background."""
    red, green, blue = np.moveaxis(video >> (8 - _BITS), -1, 0).astype(np.int32)
    return _label_table()[(red * _LEVELS + green) * _LEVELS + blue]


def nearest_background(colour: Float[np.ndarray, " 3"]) -> str:
    """The name of a background by its average colour in [0, 1], whatever its brightness."""
    brightness = colour.mean() / names.BACKGROUND_PALETTE.mean(1, keepdims=True)
    distances = np.linalg.norm(to_lab(names.BACKGROUND_PALETTE * brightness) - to_lab(colour), axis=-1)
    return names.BACKGROUND_COLOURS[int(distances.argmin())]


def to_lab(colour: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
    """CIE L*a*b* of sRGB in [0, 1]."""
    linear = np.where(colour > 0.04045, ((np.maximum(colour, 0) + 0.055) / 1.055) ** 2.4, colour / 12.92)
    ratio = linear.astype(np.float32) @ _XYZ.T / _WHITE
    curve = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(curve, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1).astype(np.float32)


@functools.cache
def _label_table() -> UInt8[np.ndarray, " entries"]:
    """The label of every colour of `_BITS` bits a channel."""
    middles = (np.arange(_LEVELS, dtype=np.float32) + 0.5) / _LEVELS
    colours = np.stack(np.meshgrid(middles, middles, middles, indexing="ij"), -1).reshape(-1, 3)
    shades, labels = _shades()
    target, best = to_lab(shades), np.full(len(colours), np.inf, np.float32)
    table = np.empty(len(colours), np.uint8)
    lab = to_lab(colours)
    for shade, label in zip(target, labels, strict=True):
        distance = np.linalg.norm(lab - shade, axis=-1)
        table = np.where(distance < best, np.uint8(label), table)
        best = np.minimum(distance, best)
    return table


def _shades() -> tuple[Float[np.ndarray, "n 3"], list[int]]:
    """What the world paints with, and the label of each."""
    striped = [index for index in range(NO_OBJECT) if names.TAKES_STRIPES[index]]
    stripes = [names.PALETTE[index] * names.STRIPE_SHADE for index in striped]
    backgrounds = [colour * shade for colour in names.BACKGROUND_PALETTE for shade in _BACKGROUND_SHADES]
    labels = [*range(NO_OBJECT), *striped, *([NO_OBJECT] * len(backgrounds))]
    return np.array([*names.PALETTE, *stripes, *backgrounds], np.float32), labels
