"""How large an object is at the start, and how fast it moves or grows, in the words of captions."""

import math

import numpy as np
from jaxtyping import Float

from sixbit_jax.evaluate.forms import outline_area
from sixbit_jax.evaluate.tracks import LOCATED, WHOLE, Track
from sixbit_jax.tiny import names

# Limits between the world's steps, each in the middle of a gap.
_RADII = (0.1245, 0.170)  # radius in sides: up to 0.112, 0.137 to 0.155, from 0.185
_DISTANCE = 0.355  # of a line, in sides: up to 0.29, from 0.42
_BOUNCES, _TURNS = 1.4, 0.87  # cycles: up to 1.2, from 1.6; up to 0.75, from 1.0
_GROWTH = math.log(1.85)  # of the radius: up to 1.7 times, from 2.0 times

_Path = Float[np.ndarray, "t 2"]


def read_size(track: Track, shape: str) -> str:
    """Small, medium or large, by the radius of the shape in the first frame."""
    side = min(track.masks.shape[1:])
    radius = math.sqrt(_first_area(track) / outline_area(shape)) / side
    return names.SIZES[int(np.searchsorted(_RADII, radius))]


def read_speed(track: Track, motion: str, growth: float) -> str:
    """Slow or fast, in what the kind of motion is measured by; `growth` is the logarithm of the last radius over the
    first."""
    if motion == "still":
        return "none"
    frames = track.frames(LOCATED)
    # A path seen only in part is as much longer.
    part = max(frames[-1] - frames[0], 1) / max(len(track.shown) - 1, 1)
    path = track.centres[frames] / min(track.masks.shape[1:])
    amount, limit = {
        "linear": lambda: (_distance(path) / part, _DISTANCE),
        "bounce": lambda: (_cycles(path) / part, _BOUNCES),
        "orbit": lambda: (_turns(path) / part, _TURNS),
        "grow": lambda: (abs(growth), _GROWTH),
        "shrink": lambda: (abs(growth), _GROWTH),
    }[motion]()
    return "slow" if amount < limit else "fast"


def _first_area(track: Track) -> float:
    """From a line through the logarithms: the first frame may show the object only in part."""
    times = track.frames(WHOLE)
    logs = np.log(track.areas[times])
    if len(times) < 2:
        return float(np.exp(logs.mean()))
    return float(np.exp(np.polyfit(times, logs, 1)[1]))


def _distance(path: _Path) -> float:
    return float(np.linalg.norm(path[-1] - path[0]))


def _cycles(path: _Path) -> float:
    """There and back is one."""
    way = np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
    return float(way / max(2 * np.linalg.norm(np.ptp(path, axis=0)), 1e-6))


def _turns(path: _Path) -> float:
    """Round the centre of the circle that fits best."""
    design = np.column_stack([2 * path, np.ones(len(path))])
    centre = np.linalg.lstsq(design, (path**2).sum(1), rcond=None)[0][:2]
    angle = np.unwrap(np.arctan2(*(path - centre).T))
    return float(abs(angle[-1] - angle[0]) / (2 * math.pi))
