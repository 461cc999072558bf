"""Which shape a track has: the average of its masks in its own coordinates, against the outlines of the world.

Both are shifted to their centroid and scaled to the same area, so place and size fall out. Rotation does not; the
outlines are tried at a few small angles.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy import ndimage

from sixbit_jax.evaluate.tracks import Track
from sixbit_jax.tiny import names
from sixbit_jax.tiny.outlines import OUTLINES, turn

_CELLS = 40
_REACH = 1.1  # half the side of the grid, in square roots of the area
_TILTS = np.linspace(-0.24, 0.24, 9)
_FINE = 160  # points along a side that templates are drawn with


def read_shape(track: Track) -> tuple[str, float]:
    """The best shape and how well it fits: 1 is perfect."""
    portrait = average_form(track)
    fits = _overlap(portrait, _templates()).max(1)
    best = int(fits.argmax())
    return names.SHAPES[best], float(fits[best])


def average_form(track: Track) -> Float[np.ndarray, "cells cells"]:
    """How often each point of the object's own frame is covered, over the clear frames, larger ones counting more."""
    frames = np.flatnonzero(track.clear)
    x, y = np.meshgrid(*[_ticks(_CELLS)] * 2)
    scales = np.sqrt(track.areas[frames])[:, None, None]
    columns = track.centres[frames, 0, None, None] + scales * x
    rows = track.centres[frames, 1, None, None] + scales * y
    times = np.broadcast_to(frames[:, None, None], rows.shape)
    forms = ndimage.map_coordinates(track.masks.astype(np.float32), [times, rows, columns], order=1)
    return np.average(forms, axis=0, weights=track.areas[frames]).astype(np.float32)


def _overlap(form: Float[np.ndarray, "y x"], templates: Float[np.ndarray, "... y x"]) -> Float[np.ndarray, "..."]:
    """Soft intersection over union."""
    both = np.minimum(form, templates).sum((-2, -1))
    return both / np.maximum(form, templates).sum((-2, -1))


@functools.cache
def _templates() -> Float[np.ndarray, "shapes tilts cells cells"]:
    return np.stack([[_template(name, tilt) for tilt in _TILTS] for name in names.SHAPES])


def _template(name: str, tilt: float) -> Float[np.ndarray, "cells cells"]:
    """The coverage of one outline, shifted and scaled as `average_form` does."""
    spread = 1.4 * _ticks(_FINE) / _REACH
    points = np.stack(np.meshgrid(spread, spread), -1)
    inside = _inside(name, points, tilt)
    area = inside.mean() * (2 * 1.4) ** 2
    centre = points[inside].mean(0)
    samples = np.stack(np.meshgrid(_ticks(_FINE), _ticks(_FINE)), -1) * np.sqrt(area) + centre
    fine = _inside(name, samples, tilt).astype(np.float32)
    cell = _FINE // _CELLS
    return fine.reshape(_CELLS, cell, _CELLS, cell).mean((1, 3))


def _inside(name: str, points: Float[np.ndarray, "y x 2"], tilt: float) -> np.ndarray:
    own = turn(jnp.asarray(points, jnp.float32), jnp.float32(tilt))
    return np.asarray(OUTLINES[name](own) < 0)


def _ticks(count: int) -> Float[np.ndarray, " count"]:
    """Middles of equal cells of [-reach, reach]."""
    return ((np.arange(count) + 0.5) / count * 2 - 1) * _REACH
