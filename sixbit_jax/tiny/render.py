"""Scenes to videos: outlines as signed distances, painted over the background with antialiased edges."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sixbit_jax.tiny import names
from sixbit_jax.tiny.backdrop import draw_background
from sixbit_jax.tiny.motion import poses
from sixbit_jax.tiny.outlines import distance, turn
from sixbit_jax.tiny.scene import MAX_OBJECTS, Objects, Scene

_STRIPES = 3.0  # dark stripes across a striped object


def render(scene: Scene, *, frames: int = 17, height: int = 128, width: int = 128) -> Float[Array, "t h w 3"]:
    """The video of one scene, in [-1, 1].

    The world's unit square fills the shorter side and is centred along the longer, where there is more background.
    """
    points, pixel = _pixel_centres(height, width)
    background = draw_background(scene.background, points, pixel)
    centres, radii = poses(scene.objects, jnp.linspace(0.0, 1.0, frames))

    def frame(centre: Array, radius: Array) -> Array:
        image = background
        for slot in range(MAX_OBJECTS):
            thing = jax.tree.map(lambda leaf, slot=slot: leaf[slot], scene.objects)
            image = _paint(image, thing, points - centre[slot][None, None], radius[slot], pixel)
        return image

    return 2 * jax.vmap(frame)(centres, radii) - 1


def _pixel_centres(height: int, width: int) -> tuple[Float[Array, "h w 2"], float]:
    """Where the pixels are in the world, and how large one is."""
    side = min(height, width)
    x = (jnp.arange(0.5, width) - (width - side) / 2) / side
    y = (jnp.arange(0.5, height) - (height - side) / 2) / side
    return jnp.stack(jnp.meshgrid(x, y), -1), 1 / side


def _paint(
    image: Float[Array, "h w 3"], thing: Objects, points: Float[Array, "h w 2"], radius: Float[Array, ""], pixel: float
) -> Float[Array, "h w 3"]:
    """One object over the image; `thing` is a single slot and `points` are relative to its centre."""
    own = turn(points / radius, thing.tilt)
    sharpness = radius / pixel
    coverage = jnp.clip(0.5 - distance(own, thing.shape) * sharpness, 0, 1)
    coverage = jnp.where(thing.present, coverage, 0.0)
    colour = thing.tint[None, None] * _shade(own, thing.finish, sharpness)[..., None]
    return image + (colour - image) * coverage[..., None]


def _shade(own: Float[Array, "h w 2"], finish: Array, sharpness: Array) -> Float[Array, "h w"]:
    """Brightness within an object: even, or with soft stripes."""
    stripes = 0.5 + 0.5 * jnp.clip(jnp.sin(own[..., 1] * (_STRIPES * jnp.pi)) * sharpness / 4, -1, 1)
    striped = finish == names.STRIPED_FINISH
    return jnp.where(striped, 1 - (1 - names.STRIPE_SHADE) * stripes, 1.0)
