"""What the low route of one linear group does to the model's velocity, where nothing else is rounded but the weights.

    quantized pipeline, prompts --measure--> relative change (l, g)

A group's own error says little of what becomes of it: on tiny-wan those of cross-attention's queries are the largest
of all, and do a tenth to the velocity of what others do. A predictor of errors that is scaled by this predicts what
shows. Full precision around a group, because eight bits would be rounded anew wherever anything changes, and that
would be most of what is seen.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from sixbit_jax.denoiser import WanDenoiser
from sixbit_jax.models.wan_config import GROUPS
from sixbit_jax.pipeline import WanPipeline
from sixbit_jax.policies import FixedPrecision, NoCache, StepInfo
from sixbit_jax.routes import Route
from sixbit_jax.sampler import guide

PLACES = (0.2, 0.5, 0.8)  # of a run, where it is measured


def measure(
    pipe: WanPipeline,
    prompts: Sequence[str],
    low: Route,
    *,
    report: Callable[[], Any] = lambda: None,
    **settings: Any,
) -> Float[np.ndarray, "l g"]:
    """Relative change of the guided velocity by each group in the low route: root mean square over prompts and steps.

    The latents of a step lie on the straight way from noise to the video, near which a run passes.
    """
    exact = dataclasses.replace(pipe.recipe, precision=FixedPrecision(), cache=NoCache())
    pipe = WanPipeline(pipe.components, exact)
    squares = []
    for index, prompt in enumerate(prompts):
        chosen = pipe.settings(prompt=prompt, **settings | {"seed": settings.get("seed", 0) + index})
        parts, infos, noise = pipe.parts(chosen), pipe.infos(chosen), pipe.initial_latents(chosen)
        arguments = (pipe.encode_text(chosen), noise, infos, None, None)
        video, _ = pipe.denoise_program(chosen, arguments)(pipe.components.experts, *arguments)
        for place in PLACES:
            info = jax.tree.map(lambda leaf, i=int(place * chosen.num_inference_steps): leaf[i], infos)
            sigma = info.solver.sigma
            latents = (1 - sigma) * video + sigma * noise
            squares.append(
                _squared_changes(parts.denoise, (low, Route()), pipe.components.experts, arguments[0], latents, info)
            )
        report()
    return np.sqrt(np.mean(squares, axis=0))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _squared_changes(
    denoise: WanDenoiser,
    routes: tuple[Route, Route],
    params: Any,
    text: Float[Array, "e p text"],
    latents: Float[Array, "b t h w c"],
    info: StepInfo,
) -> Float[Array, "l g"]:
    contexts = denoise.contexts(params, text)
    shape = (denoise.configs[0].num_layers, len(GROUPS))

    def velocity(route: Int[Array, "l g"]) -> Float[Array, "b t h w c"]:
        branch = lambda context: denoise(params, latents, context, info, routes=routes, route_index=route)[0]
        return guide(lax.map(branch, contexts), info.guidance)

    exact = velocity(jnp.ones(shape, jnp.int32))

    def change(place: Int[Array, ""]) -> Float[Array, ""]:
        low = velocity(jnp.ones(shape, jnp.int32).reshape(-1).at[place].set(0).reshape(shape))
        return ((low - exact) ** 2).sum() / (exact**2).sum()

    return lax.map(change, jnp.arange(shape[0] * shape[1])).reshape(shape)
