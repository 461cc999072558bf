"""Scenes and videos of the procedural world, compiled once for all tests that look at them."""

import functools

import jax
import numpy as np

from sixbit_jax.tiny.attributes import Attributes, attributes
from sixbit_jax.tiny.render import render
from sixbit_jax.tiny.scene import Scene
from sixbit_jax.tiny.world import sample_scene

SIDE = 128


@functools.cache
def sample_scenes(seed: int, count: int = 512, held_out: bool = False) -> Scene:
    """A stack of scenes, as numpy."""
    sample = jax.jit(jax.vmap(functools.partial(sample_scene, held_out=held_out)))
    return jax.device_get(sample(jax.random.split(jax.random.key(seed), count)))


def single(scenes: Scene, index: int) -> Scene:
    return jax.tree.map(lambda leaf: leaf[index], scenes)


def truths(scenes: Scene) -> list[Attributes]:
    return [attributes(single(scenes, index)) for index in range(len(scenes.background.kind))]


# Hundreds of videos are drawn: unlike most programs of the suite this one is worth optimising.
_render = jax.jit(
    render, static_argnames=("frames", "height", "width"), compiler_options={"xla_backend_optimization_level": 3}
)


def draw(scene: Scene, *, frames: int = 17, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    return np.asarray(_render(scene, frames=frames, height=height, width=width))
