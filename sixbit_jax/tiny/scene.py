"""What a scene is: arrays only, so that scenes can be sampled, stacked and rendered under `jit` and `vmap`.

Integer fields index the tuples of `names`. Lengths are in sides of the centred unit square.
"""

import dataclasses
from typing import Any

import jax

MAX_OBJECTS = 2


# The fields are not typed as arrays: JAX also builds these classes with placeholders for leaves.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Objects:
    """The objects of a scene, the furthest first. Every field leads with the object slots `o`."""

    present: Any  # bool (o): a slot may be empty, the first never is
    shape: Any  # i32 (o)
    colour: Any  # i32 (o)
    finish: Any  # i32 (o)
    size: Any  # i32 (o): at the start of the video
    motion: Any  # i32 (o)
    direction: Any  # i32 (o)
    speed: Any  # i32 (o)
    tint: Any  # f32 (o, 3): the exact colour
    tilt: Any  # f32 (o): rotation, in radians
    radius: Any  # f32 (o): at the start of the video
    growth: Any  # f32 (o): logarithm of the last radius over the first
    centre: Any  # f32 (o, 2): of the path
    travel: Any  # f32 (o): length of a line, height of a bounce, radius of an orbit
    turns: Any  # f32 (o): bounces or orbits in the whole video
    phase: Any  # f32 (o): where in the cycle they begin, in [0, 1); an orbit: clockwise from the top, either way


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Background:
    """A still pattern in shades of one colour."""

    kind: Any  # i32 ()
    colour: Any  # i32 ()
    tint: Any  # f32 (3): the exact middle shade
    angle: Any  # f32 (): of stripes and gradients, in radians
    period: Any  # f32 (): of stripes, dots and checkers
    phase: Any  # f32 (2)
    waves: Any  # f32 (n, 3): of noise; cycles per side along x and y, and the phase


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scene:
    """One video, before it is drawn."""

    objects: Objects
    background: Background
