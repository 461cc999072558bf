"""Several videos at once, from a model that is so small that its device would wait for the host.

One program, vmapped over prompts and noise. Decisions stay those of each video; but a conditional runs all of its sides
for all of them, so that routes and skips save no time here, and neither the cache's bytes nor its times mean anything.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sixbit_jax.denoiser import WanDenoiser
from sixbit_jax.errors import UserError
from sixbit_jax.pipeline import Result, Stopwatch, WanPipeline, to_channels_first
from sixbit_jax.policies import StepInfo
from sixbit_jax.sampler import Sampler, Trace, sample
from sixbit_jax.settings import Settings
from sixbit_jax.shapes import Params


def several(pipe: WanPipeline, chosen: Sequence[Settings]) -> list[Result]:
    """A video for each of `chosen`, which differ in nothing but prompt and seed. `timings` are shares of the whole."""
    shared = {dataclasses.replace(each, prompt="", seed=0) for each in chosen}
    if len(shared) != 1:
        raise UserError("several videos at once may differ in prompt and seed only")
    watch = Stopwatch()
    texts = watch("text", lambda: jnp.stack([pipe.encode_text(each) for each in chosen]))
    noise = jnp.stack([pipe.initial_latents(each) for each in chosen])
    parts, infos = pipe.parts(chosen[0]), pipe.infos(chosen[0])
    denoised, traces = watch("denoise", lambda: _denoise(parts, pipe.components.experts, texts, noise, infos))
    videos = watch("decode", lambda: [pipe.decode(each) for each in denoised])
    traces = jax.tree.map(np.asarray, traces)
    seconds = {stage: spent / len(chosen) for stage, spent in watch.seconds.items()}
    return [
        Result(video, to_channels_first(denoised[i]), jax.tree.map(lambda leaf, i=i: leaf[i], traces), seconds, each)
        for i, (video, each) in enumerate(zip(videos, chosen, strict=True))
    ]


@functools.partial(jax.jit, static_argnums=0)
def _denoise(
    parts: Sampler,
    experts: tuple[Params, ...],
    texts: Float[Array, "n e p text"],
    noise: Float[Array, "n b t h w c"],
    infos: StepInfo,
) -> tuple[Float[Array, "n b t h w c"], Trace]:
    return jax.vmap(functools.partial(one_of_several, parts, experts, infos))(texts, noise)


def one_of_several(
    parts: Sampler,
    experts: tuple[Params, ...],
    infos: StepInfo,
    text: Float[Array, "e p text"],
    noise: Float[Array, "b t h w c"],
) -> tuple[Float[Array, "b t h w c"], Trace]:
    """The latents of one, and its trace; what is mapped over."""
    contexts = cast(WanDenoiser, parts.denoise).contexts(experts, text, None, None)
    return sample(parts, experts, contexts, noise, infos)
