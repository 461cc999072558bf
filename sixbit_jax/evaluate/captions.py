"""Does a video show what its caption says? Classical vision, nothing learned.

    video --measure--> Reading --score against Attributes--> one answer an attribute --accuracy--> shares

It knows the world's palette and outlines, and no more about the video than a viewer would.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from sixbit_jax.evaluate.backgrounds import read_background
from sixbit_jax.evaluate.extents import read_size, read_speed
from sixbit_jax.evaluate.forms import read_shape
from sixbit_jax.evaluate.motions import read_growth, read_motion
from sixbit_jax.evaluate.pixels import Video, to_bytes
from sixbit_jax.evaluate.tracks import Track, find_tracks
from sixbit_jax.tiny import names
from sixbit_jax.tiny.attributes import Attributes, ObjectAttributes

_NOTHING, _UNCLEAR = "nothing", "unclear"


@dataclasses.dataclass(frozen=True)
class ObjectReading:
    """What one object looks like, in the words of `names`; a shape between two is "unclear"."""

    colour: str
    shape: str
    motion: str
    direction: str
    size: str
    speed: str
    fit: float  # of the shape, 1 is perfect
    area: float  # of the picture, on average over the video


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a video looks like, the largest object first."""

    objects: tuple[ObjectReading, ...]
    background: str
    background_colour: str


_MISSING = ObjectReading(_NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING, 0.0, 0.0)


def measure(video: Video) -> Reading:
    """Read a video: bytes, or numbers in [-1, 1]."""
    pixels = to_bytes(video)
    tracks = find_tracks(pixels)
    kind, colour = read_background(pixels, tracks)
    return Reading(tuple(_read(track) for track in tracks), kind, colour)


def _read(track: Track) -> ObjectReading:
    shape, fit, is_clear = read_shape(track)
    motion, direction = read_motion(track)
    size, speed = read_size(track, shape), read_speed(track, motion, read_growth(track))
    area = float(track.areas.mean()) / track.masks[0].size
    named = shape if is_clear else _UNCLEAR
    return ObjectReading(names.COLOURS[track.colour], named, motion, direction, size, speed, fit, area)


def score(reading: Reading, truth: Attributes) -> dict[str, bool]:
    """What of the description is right. An attribute of objects is right when it is for every described object."""
    pairs = match(reading.objects, truth.objects)
    return {
        "count": len(reading.objects) == len(truth.objects),
        "colour": all(seen.colour == told.colour for seen, told in pairs),
        "shape": all(seen.shape == told.shape for seen, told in pairs),
        "motion": all(seen.motion == told.motion for seen, told in pairs),
        "direction": all(seen.direction == told.direction for seen, told in pairs),
        "background": reading.background == truth.background,
        "background_colour": reading.background_colour == truth.background_colour,
    }


def match(
    seen: Sequence[ObjectReading], told: Sequence[ObjectAttributes]
) -> list[tuple[ObjectReading, ObjectAttributes]]:
    """A reading for each described object, best pairs first; what was not seen gets a reading of nothing."""
    free, partner = set(range(len(seen))), {}
    pairs = itertools.product(range(len(told)), range(len(seen)))
    for described, found in sorted(pairs, key=lambda pair: -_agreement(seen[pair[1]], told[pair[0]])):
        if described not in partner and found in free:
            partner[described] = seen[found]
            free.remove(found)
    return [(partner.get(index, _MISSING), thing) for index, thing in enumerate(told)]


def accuracy(readings: Sequence[Reading], truths: Sequence[Attributes]) -> dict[str, float]:
    """The share of videos in which each attribute is right."""
    scores = [score(reading, truth) for reading, truth in zip(readings, truths, strict=True)]
    return {name: float(np.mean([each[name] for each in scores])) for name in scores[0]}


def _agreement(seen: ObjectReading, told: ObjectAttributes) -> int:
    """How much of a description fits. Colour counts most: it is what tells two objects apart."""
    moves = (seen.motion == told.motion) + (seen.direction == told.direction)
    return 5 * (seen.colour == told.colour) + 2 * (seen.shape == told.shape) + moves
