"""The reverse process: one scan over steps, a scan over guidance branches inside it, the model's scan over blocks
inside that.

    scan over StepInfo:
        skip = cache.decide, route = precision.decide          (per branch; branches may agree on what is skipped)
        scan over branches: velocity = denoise(latents, context, route, cache.run_stack)
        latents = scheduler.step(guided velocity)
        precision.update, cache.update                         (per branch)

The loop knows the model as a function and the policies by their contract; nothing here asks which one it has. One video
at a time: decisions depend on the data, and a vmapped conditional would run both of its sides.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sixbit_jax.policies import AbstractCachePolicy, AbstractPrecisionPolicy, PolicySpec, StepInfo
from sixbit_jax.routes import Route
from sixbit_jax.schedulers import Scheduler
from sixbit_jax.shapes import Blocks, RunStack

# To compile a program with that samples by a delta cache. By its faster analysis XLA does not see on a GPU that
# a cache passed through one side of a conditional can be updated in place on the other, and copies all of it twice a
# block: 84 ms of a 1.3B forward on an H200.
COMPILER_OPTIONS: dict[str, str | bool] = {"xla_gpu_copy_insertion_use_region_analysis": True}


@runtime_checkable
class Denoise(Protocol):
    """A model: the velocity at the latents, the cache memory, and what the block runner observed of each layer."""

    def __call__(
        self,
        params: Any,
        latents: Float[Array, "b t h w c"],
        context: Any,
        info: StepInfo,
        *,
        routes: Sequence[Route],
        route_index: Int[Array, "l g"],
        run_stack: RunStack,
        memory: Any,
        decisions: Any,
    ) -> tuple[Float[Array, "b t h w c"], Any, Any]: ...


@dataclasses.dataclass(frozen=True)
class Sampler:
    """The parts of a run. Hashable and without arrays: a static argument of the compiled program."""

    denoise: Denoise
    scheduler: Scheduler
    precision: AbstractPrecisionPolicy
    cache: AbstractCachePolicy
    spec: PolicySpec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplerState:
    """All that changes from step to step. Policy states lead with the branches; `memory` with (branch, layer) slots."""

    latents: Any
    scheduler: Any
    precision: Any
    cache: Any
    memory: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trace:
    """What was decided and observed, per step and branch.

    `observed` holds one entry per quantity the cache policy measures or recalls, and what the model notes of its
    blocks. A quantity that this run's policies do not know is None; where a block was skipped Γ and change are 0.
    """

    route: Any  # i32 (i, e, l, g): index into the precision policy's routes
    skipped: Any  # bool (i, e, l)
    observed: Any  # dict of (i, e, l)

    @property
    def gamma(self) -> Any:  # f32 (i, e, l)
        """What each block added, relative to its input."""
        return self.observed.get("gamma")

    @property
    def change(self) -> Any:  # f32 (i, e, l)
        """Of a block's delta since the one before."""
        return self.observed.get("change")

    @property
    def error(self) -> Any:  # f32 (i, e, l)
        """What reuse since the last computation is assumed to have cost."""
        return self.observed.get("error")


def sample(
    parts: Sampler,
    params: Any,
    contexts: Any,
    noise: Float[Array, "b t h w c"],
    infos: StepInfo,
    report: Callable[..., None] | None = None,
) -> tuple[Float[Array, "b t h w c"], Trace]:
    """Denoise `noise` into latents.

    `contexts` leads with the branches: the prompt, then, under guidance, the negative prompt. `infos` leads with the
    steps. `report(step, skipped fraction, mean activation bits of what ran)` is called on the host after every step.
    """
    bits = jnp.asarray([route.bits for route in parts.precision.routes], jnp.float32)

    def step(state: SamplerState, info: StepInfo) -> tuple[SamplerState, Trace]:
        wanted = _per_branch(parts, lambda s: parts.cache.decide(parts.spec, s, info), state.cache)
        skip = parts.cache.agree(parts.spec, wanted)
        route = _per_branch(parts, lambda s, k: parts.precision.decide(parts.spec, s, info, k), state.precision, skip)
        velocities, memory, observed = _velocities(parts, params, contexts, state, info, route, skip)
        velocity = guide(velocities, info.guidance)
        latents, scheduler = parts.scheduler.step(state.scheduler, state.latents, velocity, info.solver)
        precision = _per_branch(
            parts, lambda s, k, o: parts.precision.update(parts.spec, s, info, k, o), state.precision, skip, observed
        )
        cache = _per_branch(
            parts, lambda s, k, o: parts.cache.update(parts.spec, s, info, k, o), state.cache, skip, observed
        )
        if report is not None:
            jax.debug.callback(report, info.step, skip.astype(jnp.float32).mean(), mean_bits(bits, route, skip))
        trace = Trace(route, skip, observed | _per_branch(parts, parts.cache.recall, cache))
        return SamplerState(latents, scheduler, precision, cache, memory), trace

    state, trace = lax.scan(step, _initial_state(parts, noise), infos)
    return state.latents, trace


def mean_bits(bits: Float[Array, " r"], route: Int[Array, "e l g"], skip: Bool[Array, "e l"]) -> Float[Array, ""]:
    """Mean width of the activations in the blocks that ran; 0 when none did."""
    width = jnp.where(skip, 0.0, bits[route].mean(-1))
    return width.sum() / jnp.maximum((~skip).sum(), 1).astype(jnp.float32)


def guide(velocities: Float[Array, "e b t h w c"], scale: Float[Array, ""]) -> Float[Array, "b t h w c"]:
    """Classifier-free guidance: away from the negative prompt, by `scale`. A single branch passes through."""
    if velocities.shape[0] == 1:
        return velocities[0]
    conditional, unconditional = velocities
    return unconditional + scale * (conditional - unconditional)


def _velocities(
    parts: Sampler,
    params: Any,
    contexts: Any,
    state: SamplerState,
    info: StepInfo,
    route: Int[Array, "e l g"],
    skip: Bool[Array, "e l"],
) -> tuple[Float[Array, "e b t h w c"], Any, Any]:
    """One model call per branch, in sequence, all writing to the same cache memory."""
    slots = jnp.arange(parts.spec.branches * parts.spec.layers).reshape(parts.spec.branches, parts.spec.layers)

    def run_stack(blocks: Blocks, x: Array, memory: Any, decisions: Any) -> tuple[Array, Any, Any]:
        return parts.cache.run_stack(blocks, x, memory, *decisions)

    def branch(memory: Any, xs: Any) -> tuple[Any, Any]:
        context, route, slots, skip = xs
        velocity, memory, observed = parts.denoise(
            params,
            state.latents,
            context,
            info,
            routes=parts.precision.routes,
            route_index=route,
            run_stack=run_stack,
            memory=memory,
            decisions=(slots, skip),
        )
        return memory, (velocity, observed)

    memory, (velocities, observed) = lax.scan(branch, state.memory, (contexts, route, slots, skip))
    return velocities, memory, observed


def _initial_state(parts: Sampler, noise: Float[Array, "b t h w c"]) -> SamplerState:
    return SamplerState(
        latents=noise,
        scheduler=parts.scheduler.init(noise),
        precision=_per_branch(parts, lambda: parts.precision.init(parts.spec)),
        cache=_per_branch(parts, lambda: parts.cache.init(parts.spec)),
        memory=parts.cache.allocate(parts.spec),
    )


def _per_branch(parts: Sampler, f: Callable[..., Any], *args: Any) -> Any:
    """Map a policy's method over the branches. The counter is there because a state may have no arrays to map over."""
    return jax.vmap(lambda _, *args: f(*args))(jnp.arange(parts.spec.branches), *args)
