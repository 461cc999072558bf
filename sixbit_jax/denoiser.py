"""The Wan DiT as the sampler's model: one or two experts, and what each needs of the prompt.

Wan2.2 A14B has two transformers, one for high and one for low noise. They are the same code twice: parameters and
contexts are tuples with one entry per expert, and a step's `expert` picks the entry.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sixbit_jax.models import wan
from sixbit_jax.models.wan_config import WanConfig
from sixbit_jax.policies import StepInfo
from sixbit_jax.shapes import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BranchContext:
    """What one expert reads of the prompts; leaves lead with the guidance branches."""

    text: wan.Context
    channels: Any = None  # f32 (e, b, t, h, w, c): channels behind the noise, for image-to-video


@dataclasses.dataclass(frozen=True)
class WanDenoiser:
    """Static facts of the model call.

    `token_multiple`: what kernels want the token count to be a multiple of. `observe`, `outlier_ratios`: what to note
    of the input of every linear group (see `wan.forward`).
    """

    configs: tuple[WanConfig, ...]
    attention: str | tuple[str, ...] | None = None
    token_multiple: int = 1
    observe: wan.Observe | None = None
    outlier_ratios: bool = False

    def contexts(
        self,
        params: tuple[Params, ...],
        text: Float[Array, "e p text"],
        image: Float[Array, "g image"] | None = None,
        channels: Float[Array, "b t h w c"] | None = None,
    ) -> tuple[BranchContext, ...]:
        """Keys and values of every layer, once per prompt. Both branches see the same image."""
        branches = text.shape[0]
        repeat = lambda x: jnp.broadcast_to(x[None], (branches, *x.shape))
        image = None if image is None else repeat(image)
        channels = None if channels is None else repeat(channels)
        return tuple(
            BranchContext(_lead_with_branches(wan.embed_context(p, config, text, image)), channels)
            for p, config in zip(params, self.configs, strict=True)
        )

    def __call__(
        self,
        params: tuple[Params, ...],
        latents: Float[Array, "b t h w c"],
        context: tuple[BranchContext, ...],
        info: StepInfo,
        **plan: Any,
    ) -> tuple[Float[Array, "b t h w c"], Any, Any]:
        """The velocity by the expert of this step."""

        def expert(index: int) -> Callable[[], tuple[Array, Any, Any]]:
            return lambda: self._forward(index, params[index], latents, context[index], info, plan)

        experts = [expert(index) for index in range(len(self.configs))]
        return experts[0]() if len(experts) == 1 else lax.switch(info.expert, experts)

    def _forward(
        self,
        index: int,
        params: Params,
        latents: Float[Array, "b t h w c"],
        context: BranchContext,
        info: StepInfo,
        plan: dict[str, Any],
    ) -> tuple[Float[Array, "b t h w c"], Any, Any]:
        if context.channels is not None:
            latents = jnp.concatenate([latents, context.channels], axis=-1)
        timestep = jnp.broadcast_to(info.timestep, latents.shape[:1])
        return wan.forward(
            params,
            self.configs[index],
            latents,
            timestep,
            context.text,
            attention_implementation=self.attention,
            token_multiple=self.token_multiple,
            observe=self.observe,
            outlier_ratios=self.outlier_ratios,
            **plan,
        )


def _lead_with_branches(context: wan.Context) -> wan.Context:
    """(l, e, p, a, c), branches as a batch, to (e, l, 1, p, a, c): the sampler takes one branch at a time."""
    return jax.tree.map(lambda x: jnp.moveaxis(x[:, :, None], 1, 0), context)
