"""Numbers per step and block as coloured squares, several maps on one picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

if TYPE_CHECKING:
    from PIL import ImageDraw

_CELL, _TITLE, _GAP = 16, 20, 12
_LEAST_WIDTH = 420  # room for titles
# From low to high; told apart without colour vision too, since brightness falls all the way.
_COLOURS = np.array([(255, 250, 225), (252, 190, 90), (214, 80, 70), (110, 25, 90), (15, 8, 40)], np.float32)

Values = Float[np.ndarray, "steps blocks"]


def write_heat_maps(path: Path, maps: Mapping[str, Values]) -> None:
    """A PNG with a map below the other: steps to the right, blocks downwards, each on its own logarithmic scale."""
    from PIL import Image, ImageDraw

    steps, blocks = next(iter(maps.values())).shape
    width = max(steps * _CELL, _LEAST_WIDTH) + 2 * _GAP
    height = len(maps) * (blocks * _CELL + _TITLE + _GAP) + _GAP
    picture = Image.new("RGB", (width, height), (255, 255, 255))
    draw, top = ImageDraw.Draw(picture), _GAP
    for title, values in maps.items():
        _write(draw, f"{title}: {values.min():.3g} (light) to {values.max():.3g} (dark)", top)
        cells = np.kron(colour(values.T), np.ones((_CELL, _CELL, 1), np.uint8))
        picture.paste(Image.fromarray(cells), (_GAP, top + _TITLE))
        top += blocks * _CELL + _TITLE + _GAP
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)


def colour(values: Float[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "rows columns 3"]:
    """Logarithms between the least and the largest value, as colours.

    >>> colour(np.array([[1.0, 10.0]])).tolist()
    [[[255, 250, 225], [15, 8, 40]]]
    """
    logs = np.log(np.maximum(values, 1e-9))
    place = (logs - logs.min()) / max(float(np.ptp(logs)), 1e-9) * (len(_COLOURS) - 1)
    channels = [np.interp(place, np.arange(len(_COLOURS)), _COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def _write(draw: "ImageDraw.ImageDraw", text: str, top: int) -> None:
    from PIL import ImageFont

    draw.text((_GAP, top + 2), text, fill=(0, 0, 0), font=ImageFont.load_default(size=13))
