"""Clouds of points with the lines fitted to them, one panel a title."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

_SIDE, _GAP, _TITLE = 260, 46, 24
_DOT = 1.2
_MOST_DOTS = 4000  # a panel; more would be a blot

Points = Float[np.ndarray, "m 2"]


def write_scatter(path: Path, panels: Mapping[str, Sequence[Points]], axes: tuple[str, str]) -> None:
    """A PNG with the panels side by side. Each cloud of a panel has its own shade; all panels have their own scale."""
    from PIL import Image, ImageDraw, ImageFont

    width = len(panels) * (_SIDE + _GAP) + _GAP
    picture = Image.new("RGB", (width, _SIDE + 2 * _GAP + _TITLE), (255, 255, 255))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=13)
    for index, (title, clouds) in enumerate(panels.items()):
        left, top = _GAP + index * (_SIDE + _GAP), _GAP
        low, high = _limits(clouds)
        draw.text((left, top - _TITLE), title, fill=(0, 0, 0), font=font)
        draw.rectangle((left, top, left + _SIDE, top + _SIDE), outline=(150, 150, 150))
        draw.text((left, top + _SIDE + 4), f"{axes[0]}: {low[0]:.2g} to {high[0]:.2g}", fill=(0, 0, 0), font=font)
        draw.text((left, top + _SIDE + 20), f"{axes[1]}: {low[1]:.2g} to {high[1]:.2g}", fill=(0, 0, 0), font=font)
        for number, cloud in enumerate(clouds):
            places = (cloud - low) / (high - low) * (_SIDE - 8) + 4
            for x, y in places[:: max(1, len(cloud) * len(clouds) // _MOST_DOTS)]:
                at_x, at_y = left + x, top + _SIDE - y
                draw.ellipse((at_x - _DOT, at_y - _DOT, at_x + _DOT, at_y + _DOT), fill=_shade(number, len(clouds)))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)


def _limits(clouds: Sequence[Points]) -> tuple[Float[np.ndarray, " 2"], Float[np.ndarray, " 2"]]:
    """The box of all points, never empty."""
    points = np.concatenate(clouds)
    low, high = points.min(0), points.max(0)
    return low, np.where(high > low, high, low + 1)


def _shade(index: int, count: int) -> tuple[int, int, int]:
    """From orange to blue."""
    share = index / max(count - 1, 1)
    return round(230 - 200 * share), round(130 - 40 * share), round(30 + 190 * share)
