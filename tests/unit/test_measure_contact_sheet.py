"""Contact sheets: the frames that were asked for, where they belong."""

from pathlib import Path

import numpy as np
from PIL import Image

from sixbit_jax.evaluate.contact_sheet import film_strip, write_contact_sheet


def counting_video(frames: int) -> np.ndarray:
    """Frame i is all i."""
    return np.broadcast_to(np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, 8, 10, 3)).copy()


def test_a_strip_holds_evenly_spaced_frames():
    strip = film_strip(counting_video(17), 5)
    assert [int(strip[0, column, 0]) for column in range(0, strip.shape[1], 14)] == [0, 4, 8, 12, 16]
    assert strip.shape == (8, 5 * 14 - 4, 3)
    assert film_strip(counting_video(3), 5).shape[1] == 3 * 14 - 4


def test_a_sheet_has_a_row_a_video(tmp_path: Path):
    path = tmp_path / "new" / "sheet.png"
    videos = [counting_video(17), np.zeros((5, 8, 10, 3), np.float32)]
    write_contact_sheet(path, videos, ["a", "a caption that is far too long for so small a sheet"], frames=5)
    with Image.open(path) as image:
        sheet = np.asarray(image)
    assert sheet.shape == (2 * (8 + 18 + 4), 5 * 14 + 4, 3)
    assert sheet[18, 4 + 14, 0] == 4  # second frame of the first video
    assert sheet[30 + 18, 4, 0] in (127, 128)  # zero is grey
    assert (sheet[:18] == 0).any()  # some ink
