"""The truth about a scene in words, and which combinations are kept out of training.

A combination of an object's colour, shape and kind of motion with the background's kind and colour is held out when a
checksum of its name says so: fixed for good, and the same in captions, samplers and tests. The split is that fine
because a model learns a coarser one: without any purple triangle that drifts, it makes "a purple triangle drifts over a
green background" a green triangle over a purple one.
"""

import dataclasses
import itertools
import zlib

import numpy as np

from sixbit_jax.tiny import names
from sixbit_jax.tiny.scene import MAX_OBJECTS, Objects, Scene

_HELD_OUT_ONE_IN = 10


@dataclasses.dataclass(frozen=True)
class ObjectAttributes:
    """One object, in the words of `names`."""

    colour: str
    shape: str
    motion: str
    direction: str
    size: str
    speed: str


@dataclasses.dataclass(frozen=True)
class Attributes:
    """One scene, in the words of `names`."""

    objects: tuple[ObjectAttributes, ...]
    background: str
    background_colour: str


def attributes(scene: Scene) -> Attributes:
    """What a single (not batched) scene shows."""
    objects, background = scene.objects, scene.background
    return Attributes(
        tuple(_object(objects, slot) for slot in range(MAX_OBJECTS) if objects.present[slot]),
        names.BACKGROUNDS[int(background.kind)],
        names.BACKGROUND_COLOURS[int(background.colour)],
    )


def is_held_out(truth: Attributes) -> bool:
    """True if some object, on this background, is a combination that training never shows."""
    kind, colour = names.BACKGROUNDS.index(truth.background), names.BACKGROUND_COLOURS.index(truth.background_colour)
    return any(
        HELD_OUT[names.COLOURS.index(thing.colour), names.SHAPES.index(thing.shape), names.MOTIONS.index(thing.motion)][
            kind, colour
        ]
        for thing in truth.objects
    )


def _object(objects: Objects, slot: int) -> ObjectAttributes:
    def word(field: str, choices: tuple[str, ...]) -> str:
        return choices[int(getattr(objects, field)[slot])]

    return ObjectAttributes(
        colour=word("colour", names.COLOURS),
        shape=word("shape", names.SHAPES),
        motion=word("motion", names.MOTIONS),
        direction=word("direction", names.DIRECTIONS),
        size=word("size", names.SIZES),
        speed=word("speed", names.SPEEDS),
    )


def _held_out(colour: str, shape: str, motion: str) -> np.ndarray:
    """On which backgrounds (kind, colour) an object is held out: every tenth, so each object has a few, in several
    colours."""
    first = zlib.crc32(f"{colour} {shape} {motion}".encode())
    count = len(names.BACKGROUNDS) * len(names.BACKGROUND_COLOURS)
    return ((first + np.arange(count)) % _HELD_OUT_ONE_IN == 0).reshape(len(names.BACKGROUNDS), -1)


# (colour, shape, motion, background kind, background colour) -> held out
HELD_OUT = np.array(
    [_held_out(*triple) for triple in itertools.product(names.COLOURS, names.SHAPES, names.MOTIONS)]
).reshape(
    len(names.COLOURS), len(names.SHAPES), len(names.MOTIONS), len(names.BACKGROUNDS), len(names.BACKGROUND_COLOURS)
)
