"""Prompt to video: encode the text, draw the noise, plan the steps, denoise, decode.

pipe = WanPipeline.load("assets/tiny-wan")
result = pipe("a red circle drifts to the left")
result.save("circle.mp4")
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from sixbit_jax import calibrate, compile_cache, presets, progress, recipes, schedulers, text
from sixbit_jax.attention import implementations as attention_implementations
from sixbit_jax.components import Components, stored_recipe
from sixbit_jax.denoiser import WanDenoiser
from sixbit_jax.errors import UserError, nearest
from sixbit_jax.explain import explain_components
from sixbit_jax.linear import implementations as linear_implementations
from sixbit_jax.models import umt5, vae
from sixbit_jax.models.vae import Tiling, VAEConfig
from sixbit_jax.models.wan import Observe
from sixbit_jax.models.wan_config import GROUPS, TEXT_TOKENS, TRAIN_TIMESTEPS
from sixbit_jax.policies import PolicySpec, StepInfo
from sixbit_jax.presets import Preset
from sixbit_jax.quantize import StatisticsByPath
from sixbit_jax.recipes import Recipe
from sixbit_jax.sampler import COMPILER_OPTIONS, Sampler, Trace, sample
from sixbit_jax.settings import Settings
from sixbit_jax.shapes import Params
from sixbit_jax.video import write_mp4

# GPU kernels like whole tiles of tokens, and run without; on a CPU padding is only work. What policies measure counts
# padding as tokens, so there must be little of it: 320 tokens, padded to 512, are routed and skipped in another way.
TOKEN_MULTIPLE = {"gpu": 256}
MOST_PADDING = 0.02
# Above this many pixels a frame the VAE works in tiles.
UNTILED_PIXELS = 1280 * 720


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished video. `latents` is (1, c, t, h, w), the layout diffusers takes; `timings` are seconds."""

    video: UInt8[np.ndarray, "frames height width 3"]
    latents: Float[np.ndarray, "1 c t h w"]
    trace: Trace
    timings: dict[str, float]
    settings: Settings

    def save(self, path: str | Path) -> None:
        """Write an mp4 that browsers play."""
        write_mp4(Path(path), self.video, self.settings.fps)


class WanPipeline:
    """A loaded checkpoint under a recipe. Calling it makes one video; programs are compiled once per shape and kept."""

    def __init__(
        self, components: Components, recipe: Recipe, observe: Observe | None = None, preset: Preset | None = None
    ):
        self.components = components
        self.recipe = recipe
        self.observe = observe
        self.preset = preset
        self._programs: dict[Any, Callable[..., Any]] = {}

    @classmethod
    def load(
        cls,
        path_or_id: str | Path,
        recipe: str | Recipe | None = None,
        *,
        dtype: str | None = None,
        attention: str | None = None,
        statistics: str | Path | Mapping[str, StatisticsByPath] | None = None,
        preset: str | Path | None = None,
        steps: int | None = None,
    ) -> "WanPipeline":
        """Load a converted checkpoint, a diffusers folder, or a hub id.

        Without a `recipe` a quantized checkpoint runs under its own and any other in bf16. `dtype` and `attention`
        override the recipe's own. `statistics`: what `calibrate.collect` returned, or a file that `calibrate.save`
        wrote, for the recipes that need them. `preset`: a file of `scripts/calibrate.py`, for recipes with thresholds;
        without it the one made at about as many `steps` is looked for (see `presets`). Turns the persistent compile
        cache on (see `compile_cache`).
        """
        compile_cache.enable()
        recipe = recipe or stored_recipe(path_or_id) or "bf16"
        recipe = recipes.load(recipe) if isinstance(recipe, str) else recipe
        recipe = dataclasses.replace(recipe, dtype=dtype or recipe.dtype, attention=attention or recipe.attention)
        _check_implementations(recipe)
        recipe, found = presets.complete(recipe, path_or_id, steps=steps, file=None if preset is None else Path(preset))
        if isinstance(statistics, str | Path):
            statistics = calibrate.load(Path(statistics))
        return cls(Components.load(path_or_id, recipe.dtype, recipe, statistics), recipe, preset=found)

    def settings(self, **overrides: Any) -> Settings:
        """The checkpoint's own defaults, changed by `overrides`, and checked."""
        defaults = self.components.defaults | {k: v for k, v in overrides.items() if v is not None}
        return Settings(**defaults).checked()

    def __call__(
        self,
        prompt: str,
        *,
        latents: np.ndarray | None = None,
        image_embeds: np.ndarray | None = None,
        condition: np.ndarray | None = None,
        **settings: Any,
    ) -> Result:
        """Make one video. Keyword arguments are the fields of `Settings`.

        `latents`: initial noise (c, t, h, w) or (1, c, t, h, w), the layout diffusers takes. Image-to-video checkpoints
        need `condition`, the channels behind the noise in the same layout, and, for Wan2.1, `image_embeds`, the
        penultimate CLIP layer (tokens, width).
        """
        chosen = self.settings(prompt=prompt, **settings)
        watch = Stopwatch()
        embeddings = watch("text", lambda: self.encode_text(chosen))
        noise = self.initial_latents(chosen, latents)
        arguments = (embeddings, noise, self.infos(chosen), *self._image_inputs(chosen, image_embeds, condition))
        program = watch("compile", lambda: self.denoise_program(chosen, arguments))
        denoised, trace = watch("denoise", lambda: program(self.components.experts, *arguments))
        video = watch("decode", lambda: self.decode(denoised))
        return Result(video, to_channels_first(denoised), jax.tree.map(np.asarray, trace), watch.seconds, chosen)

    def observed(self, settings: Settings) -> dict[str, Any]:
        """What the blocks of one run from a prompt measured, steps and branches leading. No video is made."""
        return cast(dict[str, Any], self.traced(settings).observed)

    def traced(self, settings: Settings) -> Trace:
        """The trace of one run from a prompt. No video is made."""
        arguments = (self.encode_text(settings), self.initial_latents(settings), self.infos(settings), None, None)
        _, trace = self.denoise_program(settings, arguments)(self.components.experts, *arguments)
        return jax.tree.map(np.asarray, trace)

    def explain(self, **settings: Any) -> str:
        """A line for every linear: how it is stored, what its activations are rounded to, what runs it and why.

        And one for each attention.
        """
        chosen = self.settings(**settings)
        tokens, routes = self.parts(chosen).spec.tokens, self.recipe.precision.routes
        return explain_components(self.components, routes, tokens, chosen.branches, self.recipe.attention)

    def notes(self, settings: Settings) -> list[str]:
        """What a user should know of how these settings meet the recipe's policies."""
        spec = self.parts(settings).spec
        notes = [self.recipe.cache.for_run(spec)[1]]
        if self.preset is not None and self.preset.steps != settings.num_inference_steps:
            notes.append(f"{self.preset}; at {settings.num_inference_steps} its thresholds mean other rates")
        return [note for note in notes if note]

    def cache_bytes(self, settings: Settings) -> int:
        """What the cache policy keeps on the device during a run."""
        parts = self.parts(settings)
        return parts.cache.nbytes(parts.spec)

    def encode_text(self, settings: Settings) -> Float[Array, "e p text"]:
        """Prompt and, under guidance, negative prompt; rows beyond a prompt's length are zero."""
        prompts = [settings.prompt, settings.negative_prompt][: settings.branches]
        ids, mask = self.components.tokenizer(prompts, length=TEXT_TOKENS)
        return _encode_text(
            self.components.text_params, self.components.text_config, jnp.asarray(ids), jnp.asarray(mask)
        )

    def initial_latents(self, settings: Settings, latents: np.ndarray | None = None) -> Float[Array, "1 t h w c"]:
        """Standard normal noise of the seed, or the user's own."""
        t, h, w = settings.latent_shape
        c = self.components.transformer_configs[0].out_channels
        if latents is None:
            return jax.random.normal(jax.random.key(settings.seed), (1, t, h, w, c), jnp.float32)
        return from_channels_first("--init-latents", latents, (c, t, h, w))

    def infos(self, settings: Settings) -> StepInfo:
        """The constants of every step."""
        return plan_steps(settings, self.components.boundary_ratio)

    def denoise_program(self, settings: Settings, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        """The compiled reverse process for these shapes: from memory, from the compile cache, or compiled now."""
        parts = self.parts(settings)
        key = parts, str(jax.tree.map(jnp.shape, arguments))
        if key not in self._programs:
            self._programs[key] = _denoise.lower(parts, self.components.experts, *arguments).compile(COMPILER_OPTIONS)
        return self._programs[key]

    def parts(self, settings: Settings) -> Sampler:
        """The sampler's static parts for these settings."""
        configs = self.components.transformer_configs
        tokens = int(np.prod(configs[0].grid(settings.latent_shape)))
        multiple = token_multiple(tokens, jax.default_backend())
        spec = PolicySpec(
            layers=configs[0].num_layers,
            groups=GROUPS,
            branches=settings.branches,
            steps=settings.num_inference_steps,
            tokens=tokens + -tokens % multiple,
            dim=configs[0].dim,
            dtype=self.recipe.dtype,
        )
        ratios = self.observe is None and "inputs" in self.recipe.precision.needs
        denoiser = WanDenoiser(configs, self.recipe.attention, multiple, self.observe, ratios)
        cache, _ = self.recipe.cache.for_run(spec)
        return Sampler(denoiser, schedulers.get(settings.solver), self.recipe.precision, cache, spec)

    def decode(self, latents: Float[Array, "1 t h w c"]) -> UInt8[np.ndarray, "frames height width 3"]:
        """Latents to frames, a latent frame at a time, in tiles when frames are large."""
        scale = self.components.vae_config.spatial_scale
        pixels = latents.shape[2] * latents.shape[3] * scale**2
        tile = Tiling() if pixels > UNTILED_PIXELS else None
        return np.asarray(_decode(self.components.vae_params, self.components.vae_config, latents, tile)[0])

    def _image_inputs(
        self, settings: Settings, image_embeds: np.ndarray | None, condition: np.ndarray | None
    ) -> tuple[Array | None, Array | None]:
        """Image tokens and the channels behind the noise, for the checkpoints that take them."""
        config = self.components.transformer_configs[0]
        channels = config.in_channels - config.out_channels
        for name, value, needed in (
            ("condition", condition, channels > 0),
            ("image_embeds", image_embeds, config.image_dim is not None),
        ):
            if needed != (value is not None):
                verb = "continues an image and needs" if needed else "is text-to-video and takes no"
                raise UserError(f"--model: this checkpoint {verb} `{name}` (an argument of WanPipeline's call)")
        image = None if image_embeds is None else jnp.asarray(image_embeds)
        if condition is None:
            return image, None
        return image, from_channels_first("condition", condition, (channels, *settings.latent_shape))


def token_multiple(tokens: int, backend: str) -> int:
    """What the tokens of a video are padded to a multiple of.

    >>> token_multiple(32_760, "gpu"), token_multiple(320, "gpu"), token_multiple(32_760, "cpu")
    (256, 1, 1)
    """
    multiple = TOKEN_MULTIPLE.get(backend, 1)
    return multiple if -tokens % multiple <= MOST_PADDING * tokens else 1


def _check_implementations(recipe: Recipe) -> None:
    """Names that a recipe or a caller gives; whether they support a case is known when it is compiled."""
    attention = (recipe.attention,) if isinstance(recipe.attention, str) else recipe.attention or ()
    wanted: list[tuple[str, str | None, tuple[str, ...]]]
    wanted = [("attention", name, attention_implementations()) for name in attention]
    wanted += [("linear", route.implementation, linear_implementations()) for route in recipe.precision.routes]
    for op, name, known in wanted:
        if name is not None and name not in known:
            raise UserError(f'recipe "{recipe.name}": unknown {op} implementation "{name}"; {nearest(name, known)}')


class Stopwatch:
    """Runs stages and keeps the seconds each took, device work included."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, run: Callable[[], Any]) -> Any:
        progress.announce(stage)
        start = time.perf_counter()
        result = run()
        jax.block_until_ready(result)
        jax.effects_barrier()
        self.seconds[stage] = time.perf_counter() - start
        return result


def plan_steps(settings: Settings, boundary_ratio: float | None) -> StepInfo:
    """Schedule, guidance and expert of every step.

    The second expert takes over below `boundary_ratio` of the timesteps.
    """
    steps = settings.num_inference_steps
    plan = schedulers.get(settings.solver).plan(steps, shift=settings.flow_shift, schedule=settings.schedule)
    expert = np.zeros(steps, np.int32)
    if boundary_ratio is not None:
        expert = (plan.timestep < boundary_ratio * TRAIN_TIMESTEPS).astype(np.int32)
    second = settings.guidance_scale if settings.guidance_scale_2 is None else settings.guidance_scale_2
    info = StepInfo(
        step=np.arange(steps, dtype=np.int32),
        last=np.full(steps, steps - 1, np.int32),
        timestep=np.asarray(plan.timestep, np.float32),
        guidance=np.where(expert == 0, settings.guidance_scale, second).astype(np.float32),
        expert=expert,
        solver=plan,
    )
    return jax.tree.map(jnp.asarray, info)


def to_channels_first(latents: Float[Array, "1 t h w c"]) -> Float[np.ndarray, "1 c t h w"]:
    return np.moveaxis(np.asarray(latents), -1, 1)


def from_channels_first(name: str, latents: np.ndarray, shape: tuple[int, int, int, int]) -> Float[Array, "1 t h w c"]:
    """Latents a user brought, as the model wants them."""
    if latents.shape not in (shape, (1, *shape)):
        raise UserError(f"{name}: shape {latents.shape}; these settings need {(1, *shape)} (batch, channels, t, h, w)")
    if not np.isfinite(latents).all():
        raise UserError(f"{name}: has values that are not finite")
    return jnp.asarray(np.moveaxis(latents.reshape(1, *shape).astype(np.float32), 1, -1))


@functools.partial(jax.jit, static_argnums=0)
def _denoise(
    parts: Sampler,
    experts: tuple[Params, ...],
    text: Float[Array, "e p text"],
    noise: Float[Array, "b t h w c"],
    infos: StepInfo,
    image: Float[Array, "g image"] | None,
    channels: Float[Array, "b t h w extra"] | None,
) -> tuple[Float[Array, "b t h w c"], Trace]:
    """The one program of a run: keys and values of the prompt, then the scan over steps."""
    contexts = cast(WanDenoiser, parts.denoise).contexts(experts, text, image, channels)
    return sample(parts, experts, contexts, noise, infos, progress.report)


@functools.partial(jax.jit, static_argnums=1)
def _encode_text(params: Params, config: umt5.UMT5Config, ids: Array, mask: Array) -> Float[Array, "e p text"]:
    return text.zero_padding(umt5.encode(params, config, ids, mask), mask)


@functools.partial(jax.jit, static_argnums=(1, 3))
def _decode(
    params: Params, config: VAEConfig, latents: Float[Array, "1 t h w c"], tile: Tiling | None
) -> UInt8[Array, "1 frames height width 3"]:
    video = vae.decode(params, config, latents, tile=tile)
    return jnp.round((video.astype(jnp.float32) + 1.0) * 127.5).astype(jnp.uint8)
