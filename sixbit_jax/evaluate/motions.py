"""What kind of motion a track is, from its path and the change of its size."""

import math

import numpy as np
from jaxtyping import Float

from sixbit_jax.evaluate.tracks import LOCATED, WHOLE, Track
from sixbit_jax.tiny import names

# The least that moving and growing objects of the world do: path in sides, growth in logarithms of the radius.
# Less than half of both is standing still.
_LEAST_PATH, _LEAST_GROWTH = 0.22, math.log(1.5)
_STILL = 0.5
_ROUND = 0.4  # width of a path over its length: lines have 0, orbits of 0.8 turns or more at least 0.9
_ONE_WAY = 0.6  # displacement over the way made: lines have 1, bounces of 1.25 cycles or more at most 0.3

_Path = Float[np.ndarray, "t 2"]


def read_motion(track: Track) -> tuple[str, str]:
    """The kind of motion and its direction, in the words of `names`."""
    frames = track.frames(LOCATED)
    path = track.centres[frames]
    growth = read_growth(track)
    # A path seen only in part is as much longer.
    part = max(frames[-1] - frames[0], 1) / max(len(track.shown) - 1, 1)
    moved = float(np.linalg.norm(np.ptp(path, axis=0))) / min(track.masks.shape[1:]) / part / _LEAST_PATH
    grown = abs(growth) / _LEAST_GROWTH
    if max(moved, grown) < _STILL:
        return "still", "none"
    if grown > moved:
        return ("grow" if growth > 0 else "shrink"), "none"
    return _read_path(path)


def read_growth(track: Track) -> float:
    """Logarithm of the last radius over the first, from a line through the frames that show all of the object."""
    times = track.frames(WHOLE)
    if len(times) < 2:
        return 0.0
    slope, _ = np.polyfit(times, np.log(track.areas[times]) / 2, 1)
    return float(slope * (len(track.shown) - 1))


def _read_path(path: _Path) -> tuple[str, str]:
    """Lines, bounces and orbits, of a path that goes somewhere."""
    around = path - path.mean(0)
    _, _, axes = np.linalg.svd(around, full_matrices=False)
    length, width = np.ptp(around @ axes.T, axis=0)
    if width > _ROUND * length:
        return "orbit", _sense(around)
    displacement = path[-1] - path[0]
    way = np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
    if np.linalg.norm(displacement) < _ONE_WAY * way:
        return "bounce", ("horizontal" if abs(axes[0, 0]) > abs(axes[0, 1]) else "vertical")
    return "linear", _compass(displacement)


def _sense(around: _Path) -> str:
    """Which way round, on the screen: y points down."""
    steps = np.diff(around, axis=0)
    turning = around[:-1, 0] * steps[:, 1] - around[:-1, 1] * steps[:, 0]
    return "clockwise" if turning.sum() > 0 else "counterclockwise"


def _compass(displacement: Float[np.ndarray, " 2"]) -> str:
    angle = math.atan2(-displacement[1], displacement[0])
    return names.COMPASS[round(angle / (math.pi / 4)) % len(names.COMPASS)]
