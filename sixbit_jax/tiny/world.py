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
from sixbit_jax.tiny.motion import half_spans, poses
from sixbit_jax.tiny.scene import MAX_OBJECTS, Background, Objects, Scene

PAIR_SHARE = 0.35  # of the scenes have two objects
_STRIPED_SHARE = 0.2  # of the objects that are large enough for it
_EDGE = 0.015  # free space between objects and the border, in sides

_MOTION_WEIGHTS = np.array([0.44, 0.14, 0.16, 0.10, 0.10, 0.06])
_BACKGROUND_WEIGHTS = np.array([0.2, 0.2, 0.2, 0.14, 0.13, 0.13])

# Size at the start of the video, by motion: what shrinks must stay recognisable, what grows must stay inside.
_SIZE_WEIGHTS = np.array(
    [[0.3, 0.4, 0.3], [0.3, 0.4, 0.3], [0.3, 0.4, 0.3], [0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.25, 0.4, 0.35]]
)
_PAIR_SIZE_WEIGHTS = np.array(
    [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.4, 0.6, 0.0]]
)
_RADII = np.array([[0.092, 0.105], [0.130, 0.150], [0.185, 0.205]], np.float32)

# (motion, speed) -> range. Slow and fast are far apart, and the least travel is about two radii of a small object.
_TRAVEL = np.zeros((6, 3, 2), np.float32)
_TRAVEL[names.LINEAR, :2] = [[0.22, 0.29], [0.42, 0.52]]
_TRAVEL[names.BOUNCE, :2] = [[0.32, 0.44], [0.32, 0.44]]
_TRAVEL[names.ORBIT, :2] = [[0.15, 0.22], [0.15, 0.22]]
_TURNS = np.zeros((6, 3, 2), np.float32)
_TURNS[names.BOUNCE, :2] = [[1.25, 1.5], [2.25, 2.5]]
_TURNS[names.ORBIT, :2] = [[0.8, 1.0], [1.5, 1.75]]
_GROWTH = np.zeros((6, 3, 2), np.float32)
_GROWTH[names.GROW, :2] = np.log([[1.5, 1.7], [2.0, 2.3]])
_GROWTH[names.SHRINK, :2] = -np.log([[1.5, 1.7], [2.0, 2.3]])

_TILT = 0.2  # radians either way: a square stays a square, a cross a cross
_TINT = 0.03  # of the colour scale, either way
_WAVES, _WAVE_CYCLES = 20, (4.0, 10.0)  # of noise: how many, and their cycles per side
_PERIODS = (0.11, 0.17)

# Placements tried for a pair, and how much of the time they may be in each other's way. The first that complies is
# taken, so that some overlap.
_PLACEMENTS = 12
_OVERLAP = 0.05


def sample_scene(key: Key[Array, ""], *, held_out: bool = False, pair_share: float = PAIR_SHARE) -> Scene:
    """A random scene: from the combinations of training, or only from those kept out of it.

    `pair_share` is how likely it is to have two objects.
    """
    kinds_key, path_key, place_key, background_key = jax.random.split(key, 4)
    kinds = _sample_kinds(kinds_key, held_out, pair_share)
    objects = _place(place_key, _sample_paths(path_key, kinds))
    return Scene(objects, _sample_background(background_key, objects))


def _sample_kinds(key: Key[Array, ""], held_out: bool, pair_share: float) -> dict[str, Array]:
    """What the objects are, as indices. Two objects never share a colour: it is what tells them apart."""
    first_key, second_key, pair_key, size_key, speed_key, finish_key, direction_key = jax.random.split(key, 7)
    weights = jnp.log(jnp.asarray(np.where(held_out, HELD_OUT, ~HELD_OUT) * _MOTION_WEIGHTS, jnp.float32))
    first = _pick_triple(first_key, weights)
    taken = jnp.arange(len(names.COLOURS)) == first[0]
    second = _pick_triple(second_key, jnp.where(taken[:, None, None], -jnp.inf, weights))
    colour, shape, motion = jnp.stack([first, second], 1)
    pair = jax.random.uniform(pair_key) < pair_share
    size_weights = jnp.where(pair, jnp.asarray(_PAIR_SIZE_WEIGHTS), jnp.asarray(_SIZE_WEIGHTS))[motion]
    speed = jax.random.randint(speed_key, (MAX_OBJECTS,), 0, 2)
    striped = jax.random.uniform(finish_key, (MAX_OBJECTS,)) < _STRIPED_SHARE
    size = jax.random.categorical(size_key, jnp.log(size_weights))
    shows_stripes = jnp.asarray(names.TAKES_STRIPES)[colour] & (size > names.SMALL)
    return {
        "present": jnp.stack([jnp.ones_like(pair), pair]),
        "shape": shape,
        "colour": colour,
        "finish": (striped & shows_stripes).astype(jnp.int32),
        "size": size,
        "motion": motion,
        "direction": _sample_directions(direction_key, motion),
        "speed": jnp.where(motion == names.STILL, names.NO_SPEED, speed),
    }


def _pick_triple(key: Key[Array, ""], weights: Float[Array, "colours shapes motions"]) -> Int[Array, " 3"]:
    """Colour, shape and motion; `weights` are logarithms."""
    return jnp.stack(jnp.unravel_index(jax.random.categorical(key, weights.reshape(-1)), weights.shape))


def _sample_directions(key: Key[Array, ""], motion: Int[Array, " o"]) -> Int[Array, " o"]:
    first, count = jnp.asarray(names.FIRST_DIRECTION)[motion], jnp.asarray(names.DIRECTION_COUNT)[motion]
    return first + jax.random.randint(key, motion.shape, 0, count)


def _sample_paths(key: Key[Array, ""], kinds: dict[str, Array]) -> Objects:
    """Objects with every number but their place."""
    radius_key, growth_key, travel_key, turns_key, phase_key, tilt_key, tint_key = jax.random.split(key, 7)
    pace = (kinds["motion"], kinds["speed"])
    shape = kinds["motion"].shape
    tint = jax.random.uniform(tint_key, (*shape, 3), minval=-_TINT, maxval=_TINT)
    return Objects(
        **kinds,
        tint=jnp.clip(jnp.asarray(names.PALETTE)[kinds["colour"]] + tint, 0, 1),
        tilt=jax.random.uniform(tilt_key, shape, minval=-_TILT, maxval=_TILT),
        radius=_uniform(radius_key, _RADII, (kinds["size"],)),
        growth=_uniform(growth_key, _GROWTH, pace),
        centre=jnp.full((*shape, 2), 0.5),
        travel=_uniform(travel_key, _TRAVEL, pace),
        turns=_uniform(turns_key, _TURNS, pace),
        phase=jax.random.uniform(phase_key, shape),
    )


def _uniform(key: Key[Array, ""], ranges: np.ndarray, index: tuple[Array, ...]) -> Float[Array, " o"]:
    """One number from the range (low, high) that each object's kinds select."""
    low, high = jnp.moveaxis(jnp.asarray(ranges)[index], -1, 0)
    return low + (high - low) * jax.random.uniform(key, low.shape)


def _place(key: Key[Array, ""], objects: Objects) -> Objects:
    """Put the paths where they stay inside the picture and out of each other's way."""
    room = jnp.maximum(0.5 - _EDGE - half_spans(objects), 0.0)
    centres = 0.5 + room[None] * jax.random.uniform(key, (_PLACEMENTS, *room.shape), minval=-1, maxval=1)
    costs = jnp.maximum(jax.vmap(lambda centre: _overlap(objects, centre))(centres), _OVERLAP)
    return dataclasses.replace(objects, centre=centres[jnp.argmin(costs)])


def _overlap(objects: Objects, centre: Float[Array, "o 2"]) -> Float[Array, ""]:
    """How deep the two objects are in each other, in diameters of the smaller, on average over the video."""
    centres, radii = poses(dataclasses.replace(objects, centre=centre), jnp.linspace(0.0, 1.0, 13))
    distance = jnp.linalg.norm(centres[:, 0] - centres[:, 1], axis=-1)
    depth = jnp.maximum(radii.sum(1) - distance, 0.0) / (2 * radii.min(1))
    return jnp.where(objects.present[1], depth.mean(), 0.0)


def _sample_background(key: Key[Array, ""], objects: Objects) -> Background:
    """A background whose colour does not have the name of an object's."""
    kind_key, colour_key, tint_key, angle_key, period_key, phase_key, waves_key = jax.random.split(key, 7)
    colour = jax.random.categorical(colour_key, jnp.where(_clashes(objects), -jnp.inf, 0.0))
    tint = jax.random.uniform(tint_key, (3,), minval=-_TINT, maxval=_TINT)
    return Background(
        kind=jax.random.categorical(kind_key, jnp.log(jnp.asarray(_BACKGROUND_WEIGHTS, jnp.float32))),
        colour=colour,
        tint=jnp.asarray(names.BACKGROUND_PALETTE)[colour] + tint / 2,
        angle=jax.random.randint(angle_key, (), 0, 8).astype(jnp.float32) * (math.pi / 4),
        period=jax.random.uniform(period_key, (), minval=_PERIODS[0], maxval=_PERIODS[1]),
        phase=jax.random.uniform(phase_key, (2,)),
        waves=_sample_waves(waves_key),
    )


def _sample_waves(key: Key[Array, ""]) -> Float[Array, "waves 3"]:
    angle, cycles, phase = jax.random.uniform(key, (3, _WAVES))
    cycles = _WAVE_CYCLES[0] + (_WAVE_CYCLES[1] - _WAVE_CYCLES[0]) * cycles
    angle = 2 * math.pi * (jnp.arange(0.0, _WAVES) + angle) / _WAVES  # evenly spread, or noise would look like stripes
    return jnp.stack([cycles * jnp.cos(angle), cycles * jnp.sin(angle), phase], -1)


# (object colour, background colour) -> a person might use one word for both
_LOOK_ALIKE = {("cyan", "teal"), ("yellow", "olive"), ("orange", "brown"), ("white", "gray"), ("black", "gray")}
_CLASH = np.array(
    [
        [colour == background or (colour, background) in _LOOK_ALIKE for background in names.BACKGROUND_COLOURS]
        for colour in names.COLOURS
    ]
)


def _clashes(objects: Objects) -> Bool[Array, " backgrounds"]:
    return (jnp.asarray(_CLASH)[objects.colour] & objects.present[:, None]).any(0)
