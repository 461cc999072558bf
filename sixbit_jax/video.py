"""Frames to a file that browsers play: H.264, yuv420p, index at the front."""

import os
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from sixbit_jax.errors import UserError

QUALITY = "17"  # x264's constant rate factor; about where compression stops being visible


def write_mp4(path: Path, frames: UInt8[np.ndarray, "t h w 3"], fps: int) -> None:
    """Encode to a temporary sibling, then rename: a reader never sees half a video."""
    partial = path.with_name(f".{path.stem}.partial-{os.getpid()}.mp4")
    try:
        _encode(partial, frames, fps)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"--output {path}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)


def _encode(path: Path, frames: UInt8[np.ndarray, "t h w 3"], fps: int) -> None:
    import av

    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": QUALITY, "preset": "medium"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def read_mp4(path: Path) -> UInt8[np.ndarray, "t h w 3"]:
    """All frames of a video."""
    import av

    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
