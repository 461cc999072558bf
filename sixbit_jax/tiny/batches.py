"""Training batches: scenes, their videos and their captions' tokens, from one key and all on the device."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Key

from sixbit_jax.tiny.captions import CAPTION_LENGTH, caption_tokens
from sixbit_jax.tiny.render import render
from sixbit_jax.tiny.world import PAIR_SHARE, sample_scene


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Videos in [-1, 1] with their scenes and tokens; every leaf leads with the batch."""

    scenes: Any  # Scene
    videos: Any  # f32 (b, t, h, w, 3)
    ids: Any  # i32 (b, p)
    mask: Any  # i32 (b, p)


def sample_batch(
    key: Key[Array, ""],
    count: int,
    *,
    frames: int = 17,
    height: int = 128,
    width: int = 128,
    length: int = CAPTION_LENGTH,
    held_out: bool = False,
    complete: bool = False,
    pair_share: float = PAIR_SHARE,
) -> Batch:
    """A batch to use under `jit`; only `key` is traced."""

    def one(key: Array) -> Batch:
        scene_key, words_key = jax.random.split(key)
        scene = sample_scene(scene_key, held_out=held_out, pair_share=pair_share)
        ids, mask = caption_tokens(scene, words_key, length=length, complete=complete)
        return Batch(scene, render(scene, frames=frames, height=height, width=width), ids, mask)

    return jax.vmap(one)(jax.random.split(key, count))
