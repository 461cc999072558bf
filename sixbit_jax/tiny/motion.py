"""Where an object is, and how large, at each moment of its video.

Time runs from 0 at the first frame to 1 at the last, however many frames there are. Lengths are in sides of the
centred unit square, with y pointing down.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from sixbit_jax.tiny import names
from sixbit_jax.tiny.scene import Objects

# Outlines stay within this many radii of their centre, along x and along y.
REACH = 1.12


def poses(objects: Objects, times: Float[Array, " t"]) -> tuple[Float[Array, "t o 2"], Float[Array, "t o"]]:
    """Centres and radii of the objects of one scene."""
    moments = times[:, None]
    centres = objects.centre[None] + _offsets(objects, moments)
    return centres, objects.radius[None] * jnp.exp(objects.growth[None] * moments)


def heading(direction: Array) -> Float[Array, "... 2"]:
    """The unit vector of a compass direction, or of the axis of a bounce."""
    angle = direction.astype(jnp.float32) * (math.pi / 4)
    compass = jnp.stack([jnp.cos(angle), -jnp.sin(angle)], -1)
    axis = jnp.where((direction == names.VERTICAL)[..., None], jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0]))
    return jnp.where((direction < len(names.COMPASS))[..., None], compass, axis)


def half_spans(objects: Objects) -> Float[Array, "o 2"]:
    """How far an object gets from the centre of its path, its own extent included."""
    largest = objects.radius * jnp.exp(jnp.maximum(objects.growth, 0.0))
    along = jnp.abs(heading(objects.direction)) * objects.travel[:, None] / 2
    around = jnp.broadcast_to(objects.travel[:, None], along.shape)
    path = _by_motion(objects, line=along, bounce=along, orbit=around)
    return path + REACH * largest[:, None]


def _offsets(objects: Objects, moments: Float[Array, "t 1"]) -> Float[Array, "t o 2"]:
    """Positions relative to the centre of the path."""
    way, travel = heading(objects.direction)[None], objects.travel[None, :, None]
    line = way * travel * (moments - 0.5)[..., None]
    cycles = moments * objects.turns[None] + objects.phase[None]
    hop = jnp.where((objects.direction == names.VERTICAL)[None], _parabola(cycles), _triangle(cycles))
    bounce = way * travel / 2 * hop[..., None]
    sense = jnp.where(objects.direction == names.CLOCKWISE, 1.0, -1.0)
    angle = 2 * math.pi * (sense[None] * moments * objects.turns[None] + objects.phase[None] - 0.25)
    orbit = travel * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
    return _by_motion(objects, line=line, bounce=bounce, orbit=orbit)


def _by_motion(objects: Objects, *, line: Array, bounce: Array, orbit: Array) -> Array:
    """The rows of the arrays `(..., o, 2)` that belong to each object's motion; zero for motions on the spot."""
    motion = jnp.broadcast_to(objects.motion[:, None], line.shape)
    kinds = (names.LINEAR, names.BOUNCE, names.ORBIT)
    return jnp.select([motion == kind for kind in kinds], [line, bounce, orbit], 0.0)


def _triangle(cycles: Array) -> Array:
    """From -1 to 1 and back in one cycle, at constant speed."""
    return 1 - 4 * jnp.abs(jnp.mod(cycles, 1.0) - 0.5)


def _parabola(cycles: Array) -> Array:
    """A ball on the ground: down (1) at whole cycles, at the top (-1) half way."""
    return 2 * jnp.square(2 * jnp.mod(cycles, 1.0) - 1) - 1
