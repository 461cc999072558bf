"""Videos on one picture: a row a video, a few of its frames in order, the caption above them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from sixbit_jax.evaluate.pixels import to_bytes

if TYPE_CHECKING:
    from PIL import Image

_GAP = 4
_CAPTION_HEIGHT = 18
_PAPER, _INK = (255, 255, 255), (0, 0, 0)


def write_contact_sheet(path: Path, videos: Sequence[Any], captions: Sequence[str], *, frames: int = 6) -> None:
    """A PNG of evenly spaced frames, the first and the last among them. Videos (see `pixels`) may differ in size."""
    from PIL import Image

    strips = [film_strip(to_bytes(video), frames) for video in videos]
    width = max(strip.shape[1] for strip in strips) + 2 * _GAP
    height = sum(strip.shape[0] + _CAPTION_HEIGHT + _GAP for strip in strips)
    sheet = Image.new("RGB", (width, height), _PAPER)
    top = 0
    for strip, caption in zip(strips, captions, strict=True):
        _write(sheet, caption, top, width)
        sheet.paste(Image.fromarray(strip), (_GAP, top + _CAPTION_HEIGHT))
        top += strip.shape[0] + _CAPTION_HEIGHT + _GAP
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def film_strip(video: UInt8[np.ndarray, "t h w 3"], frames: int) -> UInt8[np.ndarray, "h strip 3"]:
    """Evenly spaced frames side by side."""
    chosen = video[np.linspace(0, len(video) - 1, min(frames, len(video))).round().astype(int)]
    padded = np.pad(chosen, ((0, 0), (0, 0), (0, _GAP), (0, 0)), constant_values=_PAPER[0])
    return np.concatenate(list(padded), axis=1)[:, :-_GAP]


def _write(sheet: "Image.Image", caption: str, top: int, width: int) -> None:
    """One line of text, shortened to the width of the sheet."""
    from PIL import ImageDraw, ImageFont

    font, draw = ImageFont.load_default(size=13), ImageDraw.Draw(sheet)
    room = width - 2 * _GAP
    while caption and draw.textlength(caption, font=font) > room:
        caption = caption[:-2].rstrip("…") + "…"
    draw.text((_GAP, top + 1), caption, fill=_INK, font=font)
