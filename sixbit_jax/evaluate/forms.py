"""Which shape a track has: a portrait of it, averaged over the video, against portraits of the world's outlines.

Portraits are shifted to the centroid and scaled to the same area, so place and size fall out. Rotation does not, nor
what blur does to edges: the outlines are drawn at a few small angles, soft and sharp, a little fat and a little thin.
"""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from sixbit_jax.evaluate.tracks import WHOLE, Track
from sixbit_jax.tiny import names
from sixbit_jax.tiny.outlines import OUTLINES, turn

_CELLS = 40
_REACH = 1.1  # half the side of a portrait, in square roots of the area
_TILTS = (-0.2, -0.1, 0.0, 0.1, 0.2)
# Blur in radii, and how much of the object's colour makes a pixel part of it: sharp edges, 1.6 pixels of blur for the
# smallest objects, and the 3 pixels that leave of their star a pentagon with dents. Still softer, a star is a circle.
_EDGES = (*itertools.product((0.02, 0.13), (0.3, 0.5, 0.7)), (0.25, 0.5))
# How far the best fit must lead the second for the shape to be clear, in intersection over union. Of 46 objects that a
# trained tiny-wan made, 43 lead by that much, and all of them are as captioned; of 20 blobs of a barely trained
# one, 13 do and 3 are. A least fit would not tell: blobs fit something at 0.4 to 0.9, a small star its outline at 0.7.
_LEAST_LEAD = 0.01
_CANVAS, _RADIUS = 160, 50  # pixels that the outlines are drawn with

_Portrait = Float[np.ndarray, "cells cells"]


def read_shape(track: Track) -> tuple[str, float, bool]:
    """The best shape, how well it fits (1 is perfect), and whether it is clear that no other fits as well."""
    frames = track.frames(WHOLE)
    portrait = _portray(track.masks[frames], track.centres[frames], track.areas[frames])
    fits = _overlap(portrait, _templates()).max(1)
    second, best = np.argsort(fits)[-2:]
    return names.SHAPES[best], float(fits[best]), bool(fits[best] - fits[second] >= _LEAST_LEAD)


@functools.cache
def outline_area(shape: str) -> float:
    """The area of a shape of radius 1."""
    return float(_drawing(shape, 0.0).sum()) / _RADIUS**2


def _portray(
    masks: Bool[np.ndarray, "t h w"], centres: Float[np.ndarray, "t 2"], areas: Float[np.ndarray, " t"]
) -> _Portrait:
    """How often each point of the object's own frame is covered; larger views count more."""
    ticks = ((np.arange(_CELLS) + 0.5) / _CELLS * 2 - 1) * _REACH
    x, y = np.meshgrid(ticks, ticks)
    scales = np.sqrt(areas)[:, None, None]
    columns, rows = centres[:, 0, None, None] + scales * x, centres[:, 1, None, None] + scales * y
    times = np.broadcast_to(np.arange(len(masks))[:, None, None], rows.shape)
    views = ndimage.map_coordinates(masks.astype(np.float32), [times, rows, columns], order=1)
    return np.average(views, axis=0, weights=areas).astype(np.float32)


def _overlap(portrait: _Portrait, templates: Float[np.ndarray, "... cells cells"]) -> Float[np.ndarray, "..."]:
    """Soft intersection over union."""
    both = np.minimum(portrait, templates).sum((-2, -1))
    return both / np.maximum(portrait, templates).sum((-2, -1))


@functools.cache
def _templates() -> Float[np.ndarray, "shapes variants cells cells"]:
    variants = [(tilt, *edge) for tilt in _TILTS for edge in _EDGES]
    return np.stack([[_template(name, *variant) for variant in variants] for name in names.SHAPES])


def _template(name: str, tilt: float, softness: float, level: float) -> _Portrait:
    mask = ndimage.gaussian_filter(_drawing(name, tilt), softness * _RADIUS) > level
    rows, columns = np.nonzero(mask)
    centre = np.array([[columns.mean(), rows.mean()]], np.float32)
    return _portray(mask[None], centre, np.array([mask.sum()], np.float32))


@functools.cache
def _drawing(name: str, tilt: float) -> Float[np.ndarray, "canvas canvas"]:
    ticks = (jnp.arange(0.5, _CANVAS) - _CANVAS / 2) / _RADIUS
    points = turn(jnp.stack(jnp.meshgrid(ticks, ticks), -1), jnp.float32(tilt))
    return np.asarray(OUTLINES[name](points) < 0, np.float32)
