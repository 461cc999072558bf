"""The shapes as signed distances: negative inside, in radii of the object, exact near the outline.

Points are in the object's own frame, y down, and no outline leaves the circle of `motion.REACH` radii along x or y.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from sixbit_jax.tiny import names

Points = Float[Array, "... 2"]
Distances = Float[Array, "..."]


def circle(points: Points) -> Distances:
    return _disc(points, 0.0, 0.0, 0.96)


def square(points: Points) -> Distances:
    return _box(points, 0.82, 0.82)


def triangle(points: Points) -> Distances:
    """Equilateral, point up."""
    x, y = points[..., 0], points[..., 1]
    return jnp.maximum(y, jnp.abs(x) * math.cos(math.pi / 6) - y * 0.5) - 0.56


def star(points: Points) -> Distances:
    """Five points, one of them up."""
    sector = 2 * math.pi / 5
    angle = jnp.arctan2(points[..., 0], -points[..., 1])
    folded = jnp.abs(jnp.mod(angle + sector / 2, sector) - sector / 2)
    length = jnp.linalg.norm(points, axis=-1)
    along, across = length * jnp.cos(folded), length * jnp.sin(folded)
    # The edge runs from the tip (1.1, 0) to the notch half a sector away.
    notch = 0.5
    edge_along, edge_across = notch * math.cos(sector / 2) - 1.1, notch * math.sin(sector / 2)
    edge = math.hypot(edge_along, edge_across)
    return ((along - 1.1) * edge_across - across * edge_along) / edge


def ring(points: Points) -> Distances:
    return jnp.abs(_disc(points, 0.0, 0.0, 0.77)) - 0.25


def cross(points: Points) -> Distances:
    return jnp.minimum(_box(points, 1.02, 0.33), _box(points, 0.33, 1.02))


def heart(points: Points) -> Distances:
    """A square on its corner with a disc on each of its upper sides."""
    side, lift = 0.62, 0.62 / math.sqrt(2)
    x, y = points[..., 0], points[..., 1] - 0.12
    turned = jnp.stack([x - y, x + y], -1) / math.sqrt(2)
    discs = jnp.minimum(_disc(points, lift, 0.12 - lift, side), _disc(points, -lift, 0.12 - lift, side))
    return jnp.minimum(_box(turned, side, side), discs)


def crescent(points: Points) -> Distances:
    """A disc without the part a second disc covers."""
    return jnp.maximum(_disc(points, 0.0, 0.0, 1.02), -_disc(points, 0.48, -0.12, 0.80))


OUTLINES: dict[str, Callable[[Points], Distances]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "ring": ring,
    "cross": cross,
    "heart": heart,
    "crescent": crescent,
}


def distance(points: Points, shape: Array) -> Distances:
    """Signed distance to the outline of a shape index. All outlines are worked out: under `vmap` a switch would too."""
    distances = [OUTLINES[name](points) for name in names.SHAPES]
    return jnp.select(
        [jnp.broadcast_to(shape == index, distances[0].shape) for index in range(len(distances))], distances
    )


def turn(points: Points, angle: Array) -> Points:
    """Points in the frame of something rotated by `angle`."""
    x, y, cosine, sine = points[..., 0], points[..., 1], jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([cosine * x + sine * y, cosine * y - sine * x], -1)


def _disc(points: Points, x: float, y: float, radius: float) -> Distances:
    return jnp.hypot(points[..., 0] - x, points[..., 1] - y) - radius


def _box(points: Points, half_width: float, half_height: float) -> Distances:
    """Exact inside and beside the box; beyond a corner it is too small, which no pixel of the outline sees."""
    return jnp.maximum(jnp.abs(points[..., 0]) - half_width, jnp.abs(points[..., 1]) - half_height)
