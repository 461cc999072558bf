"""Prompts that training shows or never shows, with what a video of each has to look like."""

import functools

import jax
from jaxtyping import Array, Int, Key

from sixbit_jax.tiny.attributes import Attributes, attributes
from sixbit_jax.tiny.captions import caption_rows, sentence
from sixbit_jax.tiny.scene import Scene
from sixbit_jax.tiny.world import PAIR_SHARE, sample_scene


def held_out_prompts(
    count: int, seed: int, *, pair_share: float = PAIR_SHARE, held_out: bool = True
) -> list[tuple[str, Attributes]]:
    """`count` different prompts about held-out combinations, or the others, each naming the background too."""
    drawn: dict[str, Attributes] = {}
    key = jax.random.key(seed)
    while len(drawn) < count:
        key, batch_key = jax.random.split(key)
        drawn |= _draw(batch_key, count, pair_share, held_out)
    return list(drawn.items())[:count]


def _draw(key: Key[Array, ""], count: int, pair_share: float, held_out: bool) -> dict[str, Attributes]:
    scenes, rows = jax.device_get(_sample(jax.random.split(key, count), pair_share, held_out))
    singles = (jax.tree.map(lambda leaf, index=index: leaf[index], scenes) for index in range(count))
    return {sentence(row): attributes(scene) for row, scene in zip(rows, singles, strict=True)}


@functools.partial(jax.jit, static_argnums=2)
@functools.partial(jax.vmap, in_axes=(0, None, None))
def _sample(key: Key[Array, ""], pair_share: float | Array, held_out: bool) -> tuple[Scene, Int[Array, " slots"]]:
    scene_key, words_key = jax.random.split(key)
    scene = sample_scene(scene_key, held_out=held_out, pair_share=pair_share)
    return scene, caption_rows(scene, words_key, complete=True)
