"""Where results go: names, refusals, whole files only; and the video file itself."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from sixbit_jax import outputs
from sixbit_jax.errors import UserError
from sixbit_jax.video import read_mp4, write_mp4


def test_names(tmp_path):
    assert outputs.plan(tmp_path / "a.mp4", ["x"], 0) == [tmp_path / "a.mp4"]
    assert outputs.plan(tmp_path, ["A red, red Circle!"], 7) == [tmp_path / "a-red-red-circle-seed7.mp4"]
    names = [path.name for path in outputs.plan(tmp_path / "new", ["one", "", "日本"], 0)]
    assert names == ["000-one-seed0.mp4", "001-video-seed0.mp4", "002-video-seed0.mp4"]


@pytest.mark.parametrize(
    ("output", "prompts", "message"),
    [
        ("v.avi", ["x"], "writes .mp4; the nearest is"),
        ("v.mp4", ["x", "y"], "one file for 2 prompts"),
        ("file", ["x"], "is a file, not a folder"),
        ("file/v.mp4", ["x"], "is not a folder"),
        ("folder.mp4", ["x"], None),
    ],
)
def test_refusals(tmp_path, output, prompts, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    if message is None:
        assert outputs.plan(tmp_path / output, prompts, 0)[0].parent == tmp_path / output
        return
    with pytest.raises(UserError, match=message):
        outputs.plan(tmp_path / output, prompts, 0)


def test_unwritable_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    with pytest.raises(UserError, match="not writable"):
        outputs.plan(tmp_path / "v.mp4", ["x"], 0)


def test_files_are_whole_or_absent(tmp_path):
    outputs.write_json(tmp_path / "a" / "b.json", {"x": 1})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"x": 1}
    with pytest.raises(TypeError):
        outputs.write_json(tmp_path / "c.json", {"x": object()})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_full_disk_is_said(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UserError, match="no space left on the disk"):
        outputs.write_npy(tmp_path / "x.npy", np.zeros(3))
    assert not list(tmp_path.iterdir())


def test_video_round_trip(tmp_path):
    """A smooth picture survives x264 at this quality to a few levels; codec and pixel format are what browsers play."""
    import av

    ramp = np.linspace(0, 255, 96)
    frames = np.stack([np.roll(np.broadcast_to(ramp, (64, 96)), 0, 1) * (0.5 + 0.05 * t) for t in range(9)])
    frames = np.repeat(frames[..., None], 3, -1).astype(np.uint8)
    write_mp4(tmp_path / "v.mp4", frames, 16)
    assert np.abs(read_mp4(tmp_path / "v.mp4").astype(int) - frames).max() <= 6
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 16
    head = (tmp_path / "v.mp4").read_bytes()
    assert head.index(b"moov") < head.index(b"mdat"), "the index must come first for playing while loading"
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]


def test_unwritable_video_is_named():
    with pytest.raises(UserError, match="--output /proc/nowhere/v"):
        write_mp4(Path("/proc/nowhere/v.mp4"), np.zeros((1, 16, 16, 3), np.uint8), 16)
