"""What `scripts/sample.py` does: check everything, load once, then one mp4 and one JSON sidecar a prompt."""

import argparse
import dataclasses
import os
import platform
import resource
from pathlib import Path
from typing import Any

import numpy as np

from sixbit_jax import cli, outputs
from sixbit_jax.errors import UserError, nearest
from sixbit_jax.versions import versions

_SETTINGS_FLAGS = (
    *("negative_prompt", "height", "width", "num_frames", "num_inference_steps", "guidance_scale", "guidance_scale_2"),
    *("flow_shift", "solver", "schedule", "seed", "fps"),
)
_VERSIONS = ("sixbit-jax", "jax", "jaxlib", "flax", "numpy", "av")


def sample_videos(args: argparse.Namespace) -> None:
    """Run the command. Everything that can be wrong is looked at before the weights are read."""
    given = _given_settings(args)
    prompts = _prompts(args)
    targets = outputs.plan(args.output, prompts or [""], given.get("seed", 0))
    initial = _read_latents(args.init_latents)
    outputs.check_writable("--save-latents", args.save_latents)
    if args.save_latents and len(targets) > 1:
        raise UserError("--save-latents: holds one video; use --prompt instead of --prompt-file")

    from sixbit_jax.settings import Settings

    Settings(**given).checked()
    pipe = _load(args)
    defaults = pipe.components.defaults
    prompts = prompts or ([defaults["prompt"]] if "prompt" in defaults else [])
    if not prompts:
        raise UserError("--prompt: this checkpoint has no default prompt; say what to show")
    if args.dry_run:
        print(_dry_run(pipe, pipe.settings(prompt=prompts[0], **given)))
        return
    pipe.initial_latents(pipe.settings(prompt=prompts[0], **given), initial)  # refuses what does not fit
    notes = pipe.notes(pipe.settings(prompt=prompts[0], **given))
    print("\n".join([_header(pipe), *(f"note: {note}" for note in notes)]))
    for prompt, target in zip(prompts, targets, strict=True):
        _one_video(args, pipe, prompt, given, initial, target)


def _one_video(
    args: argparse.Namespace, pipe: Any, prompt: str, given: dict[str, Any], initial: np.ndarray | None, target: Path
) -> None:
    from sixbit_jax import progress

    settings = pipe.settings(prompt=prompt, **given)
    _warn_unknown_words(pipe, settings)
    with progress.bar(settings.num_inference_steps):
        result = cli.interruptible(lambda: pipe(prompt, latents=initial, **given))
    target.parent.mkdir(parents=True, exist_ok=True)
    result.save(target)
    if args.save_latents:
        outputs.write_npy(args.save_latents, result.latents)
    sidecar = _sidecar(pipe, result)
    outputs.write_json(target.with_suffix(".json"), sidecar)
    if args.report:
        from sixbit_jax.evaluate.report import write_report
        from sixbit_jax.models.wan_config import GROUPS

        twin = _twin(args, pipe, result, initial, target)
        write_report(target.with_suffix(".html"), target, result, sidecar, twin, GROUPS)
        if twin:
            twin.video.unlink()
    total = sum(result.timings.values())
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in result.timings.items())
    print(f"{target}  {total:.1f} s ({stages})")


def _twin(args: argparse.Namespace, pipe: Any, result: Any, initial: np.ndarray | None, target: Path) -> Any:
    """The same video by the dense model, for the page; None where that is what was sampled or cannot be had."""
    import jax

    from sixbit_jax import progress, recipes
    from sixbit_jax.components import stored_recipe
    from sixbit_jax.evaluate.comparison import compare
    from sixbit_jax.evaluate.report import Twin
    from sixbit_jax.pipeline import WanPipeline

    plain = recipes.get("bf16" if jax.default_backend() == "gpu" else "f32")
    same = dataclasses.replace(plain, name=pipe.recipe.name, dtype=pipe.recipe.dtype)
    if pipe.recipe == same:
        return None
    if stored_recipe(args.model):
        print("note: the report has no dense twin: this checkpoint holds quantized weights only")
        return None
    print(f"making the same video under {plain.name}, for the report")
    with progress.bar(result.settings.num_inference_steps):
        dense = WanPipeline.load(args.model, plain)
        other = cli.interruptible(lambda: dense(latents=initial, **dataclasses.asdict(result.settings)))
    film = target.with_name(f".{target.stem}.twin.mp4")
    other.save(film)
    figures = compare(result.video, result.latents, other.video, other.latents)
    return Twin(film, plain.name, other.timings["denoise"], figures)


def _given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings the user typed; the checkpoint fills in the rest."""
    given = {name: getattr(args, name) for name in _SETTINGS_FLAGS if getattr(args, name) is not None}
    if args.size:
        if "height" in given or "width" in given:
            raise UserError("--size: says the same as --height and --width; give one or the other")
        from sixbit_jax.settings import parse_size

        given["width"], given["height"] = parse_size(args.size)
    return given


def _prompts(args: argparse.Namespace) -> list[str]:
    if args.prompt_file is None:
        return [] if args.prompt is None else [args.prompt]
    try:
        lines = args.prompt_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompt-file {args.prompt_file}: {getattr(error, 'strerror', None) or error}") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"--prompt-file {args.prompt_file}: has no prompts; one a line")
    return prompts


def _read_latents(path: Path | None) -> np.ndarray | None:
    if path is None:
        return None
    try:
        latents = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"--init-latents {path}: {getattr(error, 'strerror', None) or 'not a .npy file'}") from None
    if not isinstance(latents, np.ndarray) or not np.issubdtype(latents.dtype, np.floating):
        raise UserError(f"--init-latents {path}: needs one floating-point array (np.save)")
    return latents


def _load(args: argparse.Namespace) -> Any:
    if args.no_compile_cache:
        os.environ["SIXBIT_COMPILE_CACHE"] = "0"
    import jax

    from sixbit_jax import recipes
    from sixbit_jax.attention import implementations
    from sixbit_jax.components import stored_recipe
    from sixbit_jax.pipeline import WanPipeline

    stored = None if args.recipe else stored_recipe(args.model)
    recipe = stored or recipes.load(args.recipe or ("bf16" if jax.default_backend() == "gpu" else "f32"))
    if args.text_encoder_recipe:
        recipe = recipes.with_text_encoder(recipe, recipes.load(args.text_encoder_recipe))
    by_hand = {
        "--tau": args.tau,
        "--error-threshold": args.error_threshold,
        "--cache-budget-gb": args.cache_budget_gb,
    }
    recipe = recipes.with_flags(recipe, by_hand)
    if args.attention and args.attention not in implementations():
        hint = nearest(args.attention, implementations())
        raise UserError(f'--attention: unknown implementation "{args.attention}"; {hint}')
    return WanPipeline.load(
        args.model,
        recipe,
        dtype=args.dtype,
        attention=args.attention,
        statistics=args.statistics,
        preset=args.preset,
        steps=args.num_inference_steps,
    )


def _warn_unknown_words(pipe: Any, settings: Any) -> None:
    unknown = pipe.components.tokenizer.unknown_words(settings.prompt)
    if unknown:
        print(f"warning: the tokenizer does not know {', '.join(unknown)}; the model will not either")


def _header(pipe: Any) -> str:
    import jax

    dense = pipe.components.dense_bytes()
    sizes = pipe.components.weight_bytes()
    weights = ", ".join(f"{name} {_size(count, dense[name])}" for name, count in sizes.items())
    where = f"{pipe.components.source} on {jax.devices()[0].device_kind}"
    told = f"; {pipe.preset}" if pipe.preset else ""
    return f"{where}, recipe {pipe.recipe.name} ({pipe.recipe.dtype}{told}): {weights}"


def _size(stored: int, dense: int) -> str:
    """Megabytes on the device and, of quantized weights, what they would take dense."""
    size = f"{stored / 1e6:.1f} MB"
    return size if stored == dense else f"{size} ({dense / stored:.2f}x smaller than {dense / 1e6:.1f} MB dense)"


def _dry_run(pipe: Any, settings: Any) -> str:
    from sixbit_jax.estimate import EFFICIENCY, estimate, measured_rate

    weights = sum(pipe.components.weight_bytes().values())
    e = estimate(pipe.components.transformer_configs[0], settings, weights, pipe.recipe.dtype)
    rate = measured_rate(pipe.recipe.dtype)
    seconds = e.model_calls * e.tflop_per_call * 1e12 / (rate * EFFICIENCY)
    size = f"{settings.width}x{settings.height}, {settings.num_frames} frames"
    cache = pipe.cache_bytes(settings)
    total = (e.weight_bytes + e.activation_bytes + cache) / 2**30
    lines = (
        f"{size}: {e.tokens} tokens, {e.model_calls} model calls",
        f"work:   {e.tflop_per_call:.3f} TFLOP a call, {e.attention_share:.0%} of it attention",
        f"time:   about {seconds:.0f} s of denoising at the {rate / 1e12:.2f} TFLOP/s measured here",
        f"memory: about {total:.2f} GiB, {e.weight_bytes / 2**30:.2f} of it weights, {cache / 2**30:.2f} delta cache",
        *pipe.notes(settings),
        pipe.explain(**dataclasses.asdict(settings)),
    )
    return "\n".join(lines)


def _sidecar(pipe: Any, result: Any) -> dict[str, Any]:
    """Everything needed to make this video again, and what making it took."""
    import jax

    from sixbit_jax import recipes
    from sixbit_jax.realised import realised

    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    came_to = realised(result.trace, pipe.recipe.precision.routes)
    return {
        "settings": dataclasses.asdict(result.settings),
        "model": pipe.components.source,
        "recipe": recipes.to_json(pipe.recipe),
        "device": {"kind": device.device_kind, "platform": device.platform, "python": platform.python_version()},
        "versions": versions(_VERSIONS),
        "timings_s": {stage: round(seconds, 3) for stage, seconds in result.timings.items()},
        "weight_bytes": pipe.components.weight_bytes(),
        "dense_weight_bytes": pipe.components.dense_bytes(),
        "peak_device_bytes": stats.get("peak_bytes_in_use"),
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "route_bits": [route.bits for route in pipe.recipe.precision.routes],
        "cache_bytes": pipe.cache_bytes(result.settings),
        "mean_activation_bits": came_to.mean_bits,
        "mean_activation_bits_with_skipped": came_to.mean_bits_with_skipped,
        "skip_rate": came_to.skip_rate,
        "calibration": str(pipe.preset) if pipe.preset else None,
    }
