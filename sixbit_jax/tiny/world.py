"""Draws random scenes that a person could describe: objects stay in the picture, move far enough to be read, stand out
from the background and hide each other only in passing.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from sixbit_jax.tiny import names
from sixbit_jax.tiny.attributes import HELD_OUT
from sixbit_jax.tiny.dice import Dice, accumulate
from sixbit_jax.tiny.motion import half_spans, poses
from sixbit_jax.tiny.scene import MAX_OBJECTS, Background, Objects, Scene

PAIR_SHARE = 0.35  # of the scenes have two objects
_STRIPED_SHARE = 0.2  # of the objects that are large enough for it
_EDGE = 0.015  # free space between objects and the border, in sides

_MOTION_WEIGHTS = np.array([0.44, 0.14, 0.16, 0.10, 0.10, 0.06])
_BACKGROUND_WEIGHTS = np.array([20, 20, 20, 14, 13, 13])  # whole numbers: their sums are exact

# Size at the start of the video, by motion, alone and in a pair: what shrinks must stay recognisable, what grows must
# stay inside, and two objects need room.
_SIZES = accumulate(
    np.array(
        [
            [[0.3, 0.4, 0.3], [0.3, 0.4, 0.3], [0.3, 0.4, 0.3], [0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.3, 0.4, 0.3]],
            [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.4, 0.6, 0.0]],
        ]
    )
)
_RADII = np.array([[0.100, 0.112], [0.137, 0.155], [0.185, 0.205]], np.float32)

# (motion, speed) -> range. Slow and fast are far apart, and the least travel is about two radii of a small object.
_TRAVEL = np.zeros((len(names.MOTIONS), len(names.SPEEDS), 2), np.float32)
_TRAVEL[names.LINEAR, :2] = [[0.22, 0.29], [0.42, 0.52]]
_TRAVEL[names.BOUNCE, :2] = [[0.30, 0.38], [0.30, 0.38]]
_TRAVEL[names.ORBIT, :2] = [[0.14, 0.18], [0.14, 0.18]]
_TURNS = np.zeros_like(_TRAVEL)
_TURNS[names.BOUNCE, :2] = [[1.0, 1.2], [1.6, 1.8]]
_TURNS[names.ORBIT, :2] = [[0.6, 0.75], [1.0, 1.15]]
# Orbits begin near the top, within this much of the circle. If they began anywhere, those of both senses would look the
# same on average; a model trained on that never told them apart (22 of 54 right, where 96 % of other motions were).
_ORBIT_ARC = 0.25
_GROWTH = np.zeros_like(_TRAVEL)
_GROWTH[names.GROW, :2] = np.log([[1.5, 1.7], [2.0, 2.3]])
_GROWTH[names.SHRINK, :2] = -np.log([[1.5, 1.7], [2.0, 2.3]])

_TILT = 0.2  # radians either way: a square stays a square, a cross a cross
_TINT, _BACKGROUND_TINT = 0.03, 0.015  # of the colour scale, either way
_PERIODS = (0.11, 0.17)
_WAVES, _WAVE_CYCLES = 20, (4.0, 10.0)  # of noise: how many, and their cycles per side

# Placements tried for a pair, and how much of the time they may be in each other's way. The first that complies is
# taken, so that some overlap.
_PLACEMENTS = 12
_OVERLAP = 0.05

_NUMBERS = 160  # random numbers a scene may use


def sample_scene(key: Key[Array, ""], *, held_out: bool = False, pair_share: float | Array = PAIR_SHARE) -> Scene:
    """A random scene: on a background that training shows its objects on, or on one kept out of it.

    `pair_share` is how likely it is to have two objects.
    """
    dice = Dice(key, _NUMBERS)
    objects = _place(dice, _sample_paths(dice, _sample_kinds(dice, pair_share)))
    return Scene(objects, _sample_background(dice, objects, held_out))


def _sample_kinds(dice: Dice, pair_share: float | Array) -> dict[str, Array]:
    """What the objects are, as indices. Two objects never share a colour: it is what tells them apart."""
    pair = dice.chance(pair_share)
    colour, shape, motion = _sample_triples(dice)
    size = dice.pick(jnp.asarray(_SIZES)[pair.astype(jnp.int32), motion])
    speed = dice.below(jnp.full(MAX_OBJECTS, 2))
    shows_stripes = jnp.asarray(names.TAKES_STRIPES)[colour] & (size > names.SMALL)
    striped = shows_stripes & (dice.uniform(MAX_OBJECTS) < _STRIPED_SHARE)
    first, count = jnp.asarray(names.FIRST_DIRECTION)[motion], jnp.asarray(names.DIRECTION_COUNT)[motion]
    return {
        "present": jnp.stack([jnp.ones_like(pair), pair]),
        "shape": shape,
        "colour": colour,
        "finish": striped.astype(jnp.int32),
        "size": size,
        "motion": motion,
        "direction": first + dice.below(count),
        "speed": jnp.where(motion == names.STILL, names.NO_SPEED, speed),
    }


def _sample_triples(dice: Dice) -> Int[Array, "3 o"]:
    """Colour, shape and motion of each object; the second has another colour than the first."""
    colour = dice.below(jnp.full(MAX_OBJECTS, len(names.COLOURS)))
    step = 1 + dice.below(jnp.full(MAX_OBJECTS, len(names.COLOURS) - 1))
    colour = colour.at[1].set((colour[0] + step[0]) % len(names.COLOURS))
    shape = dice.below(jnp.full(MAX_OBJECTS, len(names.SHAPES)))
    motion = dice.pick(jnp.tile(jnp.asarray(accumulate(_MOTION_WEIGHTS)), (MAX_OBJECTS, 1)))
    return jnp.stack([colour, shape, motion])


def _sample_paths(dice: Dice, kinds: dict[str, Array]) -> Objects:
    """Objects with every number but their place."""
    pace = (kinds["motion"], kinds["speed"])
    tint = dice.uniform(MAX_OBJECTS, 3, low=-_TINT, high=_TINT)
    return Objects(
        **kinds,
        tint=jnp.clip(jnp.asarray(names.PALETTE)[kinds["colour"]] + tint, 0, 1),
        tilt=dice.uniform(MAX_OBJECTS, low=-_TILT, high=_TILT),
        radius=_within(dice, jnp.asarray(_RADII)[kinds["size"]]),
        growth=_within(dice, jnp.asarray(_GROWTH)[pace]),
        centre=jnp.full((MAX_OBJECTS, 2), 0.5),
        travel=_within(dice, jnp.asarray(_TRAVEL)[pace]),
        turns=_within(dice, jnp.asarray(_TURNS)[pace]),
        phase=_phase(dice, kinds["motion"]),
    )


def _phase(dice: Dice, motion: Int[Array, " o"]) -> Float[Array, " o"]:
    start = dice.uniform(MAX_OBJECTS)
    return jnp.where(motion == names.ORBIT, _ORBIT_ARC * (start - 0.5), start)


def _within(dice: Dice, ranges: Float[Array, "o 2"]) -> Float[Array, " o"]:
    return dice.uniform(MAX_OBJECTS, low=ranges[:, 0], high=ranges[:, 1])


def _place(dice: Dice, objects: Objects) -> Objects:
    """Put the paths where they stay inside the picture and out of each other's way."""
    room = jnp.maximum(0.5 - _EDGE - half_spans(objects), 0.0)
    centres = 0.5 + room[None] * dice.uniform(_PLACEMENTS, *room.shape, low=-1.0, high=1.0)
    costs = jnp.maximum(jax.vmap(lambda centre: _overlap(objects, centre))(centres), _OVERLAP)
    return dataclasses.replace(objects, centre=centres[jnp.argmin(costs)])


def _overlap(objects: Objects, centre: Float[Array, "o 2"]) -> Float[Array, ""]:
    """How deep the two objects are in each other, in diameters of the smaller, on average over the video."""
    centres, radii = poses(dataclasses.replace(objects, centre=centre), jnp.linspace(0.0, 1.0, 13))
    distance = jnp.linalg.norm(centres[:, 0] - centres[:, 1], axis=-1)
    depth = jnp.maximum(radii.sum(1) - distance, 0.0) / (2 * radii.min(1))
    return jnp.where(objects.present[1], depth.mean(), 0.0)


# (object colour, background colour) -> a person might use one word for both
_LOOK_ALIKE = {("cyan", "teal"), ("yellow", "olive"), ("orange", "brown"), ("white", "gray"), ("black", "gray")}
_CLASHES = np.array(
    [
        [colour == background or (colour, background) in _LOOK_ALIKE for background in names.BACKGROUND_COLOURS]
        for colour in names.COLOURS
    ]
)


def _sample_background(dice: Dice, objects: Objects, held_out: bool) -> Background:
    """A background whose colour could not be mistaken for an object's, from one side of the split."""
    possible = _suits(objects) & _on_side(objects, held_out)
    weights = jnp.where(possible, jnp.asarray(_BACKGROUND_WEIGHTS, jnp.int32)[:, None], 0)
    picked = dice.pick(jnp.cumsum(weights.reshape(-1)).astype(jnp.float32))
    kind, colour = jnp.divmod(picked, len(names.BACKGROUND_COLOURS))
    tint = dice.uniform(3, low=-_BACKGROUND_TINT, high=_BACKGROUND_TINT)
    return Background(
        kind=kind,
        colour=colour,
        tint=jnp.asarray(names.BACKGROUND_PALETTE)[colour] + tint,
        angle=dice.below(jnp.array(8)).astype(jnp.float32) * (math.pi / 4),
        period=dice.uniform(low=_PERIODS[0], high=_PERIODS[1]),
        phase=dice.uniform(2),
        waves=_sample_waves(dice),
    )


def _suits(objects: Objects) -> Bool[Array, "1 colours"]:
    clashes = (jnp.asarray(_CLASHES)[objects.colour] & objects.present[:, None]).any(0)
    return ~clashes[None]


def _on_side(objects: Objects, held_out: bool) -> Bool[Array, "kinds colours"]:
    """The backgrounds on which no object is held out, or on which the first one is."""
    each = jnp.asarray(HELD_OUT)[objects.colour, objects.shape, objects.motion]
    return each[0] if held_out else ~(each & objects.present[:, None, None]).any(0)


def _sample_waves(dice: Dice) -> Float[Array, "waves 3"]:
    """Cycles per side along x and y, and phases. Directions are evenly spread, or noise would look like stripes."""
    angle = 2 * math.pi * (jnp.arange(0.0, _WAVES) + dice.uniform(_WAVES)) / _WAVES
    cycles = dice.uniform(_WAVES, low=_WAVE_CYCLES[0], high=_WAVE_CYCLES[1])
    return jnp.stack([cycles * jnp.cos(angle), cycles * jnp.sin(angle), dice.uniform(_WAVES)], -1)
