"""One HTML page about one video: the video beside its twin, what was decided at every step and block, time and memory.

The page is a single file without scripts or links to anywhere, so it can be mailed and still opens in ten years.
"""

import base64
import dataclasses
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from sixbit_jax.evaluate.charts import BIT_COLOURS, SKIP_COLOUR, bits_colour, curves, step_block_map
from sixbit_jax.outputs import write_text

BRANCHES = ("prompt", "negative prompt")

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; color: #222; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { margin: 2rem 0 .4rem; font-size: 1.1rem } h3 { margin: .8rem 0 .2rem; font-size: .95rem }
.videos { display: flex; flex-wrap: wrap; gap: 1.2rem } figure { margin: 0; flex: 1 1 18rem; max-width: 30rem }
video { width: 100%; background: #000; display: block } figcaption { color: #555; padding-top: .2rem }
table { border-collapse: collapse } td, th { padding: .15rem .9rem .15rem 0; text-align: left; vertical-align: top }
th { font-weight: 500; color: #555 } .wide { overflow-x: auto } svg { display: block }
.bar { display: inline-block; height: .7em; background: #7888b0; margin-right: .5em }
.key { display: inline-block; width: .9em; height: .9em; margin: 0 .3em 0 1em; vertical-align: -.1em }
</style></head><body>
<h1>$title</h1>
<div class="videos">$videos</div>
<p>$difference</p>
<h2>Steps and blocks</h2>
<p>$summary</p><p>$keys</p>
$maps
$curves
<h2>Time</h2>$timings
<h2>Memory</h2>$memory
<h2>Settings</h2>$settings
</body></html>
""")


@dataclasses.dataclass(frozen=True)
class Twin:
    """The same video without any of it: an mp4, the name of its recipe, its denoising time, and the distances to it."""

    video: Path
    recipe: str
    seconds: float
    figures: Mapping[str, float | int | None]


def write_report(
    path: Path, video: Path, result: Any, sidecar: dict[str, Any], twin: Twin | None = None, groups: Sequence[str] = ()
) -> None:
    """Write the page for a `Result` whose mp4 and sidecar already exist. `groups`: names of the linear groups."""
    name = sidecar["recipe"]["name"]
    films = [_figure(video, name)] + ([_figure(twin.video, f"{twin.recipe}, same noise")] if twin else [])
    bits = np.array(sidecar["route_bits"], np.float64)[np.asarray(result.trace.route)]
    page = _PAGE.substitute(
        title=html.escape(result.settings.prompt or "untitled"),
        videos="".join(films),
        difference=_difference(twin),
        summary=_summary(sidecar),
        keys=_keys(sorted(set(np.unique(bits)))),
        maps=_maps(bits, result.trace, groups),
        curves=_curves(result.trace),
        timings=_bars(result.timings | ({f"denoise, {twin.recipe}": twin.seconds} if twin else {}), _seconds),
        memory=_bars(_memory(sidecar), _size),
        settings=_settings(sidecar),
    )
    write_text(path, page)


def _figure(video: Path, caption: str) -> str:
    data = base64.b64encode(video.read_bytes()).decode()
    return (
        f'<figure><video src="data:video/mp4;base64,{data}" controls autoplay loop muted playsinline></video>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _difference(twin: Twin | None) -> str:
    if twin is None:
        return ""
    decibels = twin.figures["psnr_db"]
    if decibels is None:
        return f"Both videos are the same, byte for byte ({html.escape(twin.recipe)})."
    return (
        f"Between the two: PSNR {decibels:.1f} dB, SSIM {twin.figures['ssim']:.3f}, relative error of the latents "
        f"{twin.figures['latent_error']:.3f}."
    )


def _summary(sidecar: dict[str, Any]) -> str:
    words = (
        f"{sidecar['skip_rate']:.0%} of the block executions skipped; "
        f"activations {sidecar['mean_activation_bits']:.2f} "
        f"bits wide on average where blocks ran"
    )
    if sidecar["skip_rate"]:
        words += f", {sidecar['mean_activation_bits_with_skipped']:.2f} when what was skipped counts as none"
    told = f" Thresholds: {html.escape(sidecar['calibration'])}." if sidecar["calibration"] else ""
    return f"{words}.{told}"


def _maps(bits: Any, trace: Any, groups: Sequence[str]) -> str:
    branches = range(trace.skipped.shape[1])
    return "".join(
        f'<h3>{BRANCHES[branch]}</h3><div class="wide">'
        f"{step_block_map(bits[:, branch], trace.skipped[:, branch], groups)}</div>"
        for branch in branches
    )


def _curves(trace: Any) -> str:
    """Γ, and how much deltas changed, where this run measured them."""
    charts = []
    known = {
        "Γ, what a block adds relative to its input": (trace.gamma, 0),
        "change of a block's delta": (trace.change, 1),
    }
    for title, (values, first) in known.items():
        if values is None:
            continue
        charts.append(f"<h2>{title}</h2>")
        for branch in range(values.shape[1]):
            shown = ~trace.skipped[:, branch] & (np.arange(len(values)) >= first)[:, None]
            charts.append(f"<h3>{BRANCHES[branch]}</h3>")
            charts.append(f'<div class="wide">{curves(values[:, branch], shown, title.split(",")[0])}</div>')
    return "".join(charts)


def _keys(widths: Sequence[float]) -> str:
    swatches = [(bits_colour(width), f"{width:g} bits") for width in widths if width in BIT_COLOURS]
    swatches.append((SKIP_COLOUR, "skipped"))
    return "".join(f'<span class="key" style="background:{c}"></span>{html.escape(name)}' for c, name in swatches)


def _memory(sidecar: dict[str, Any]) -> dict[str, float | int]:
    dense = sidecar["dense_weight_bytes"]
    rows: dict[str, float | int] = {}
    for name, count in sidecar["weight_bytes"].items():
        rows[f"weights, {name}"] = count
        if dense[name] != count:
            rows[f"weights, {name}, were they dense"] = dense[name]
    rows |= {"delta cache": sidecar["cache_bytes"]} if sidecar["cache_bytes"] else {}
    peaks = {"peak, device": sidecar["peak_device_bytes"], "peak, host": sidecar["peak_host_bytes"]}
    return rows | {name: count for name, count in peaks.items() if count}


def _settings(sidecar: dict[str, Any]) -> str:
    rows = {key: str(value) for key, value in sidecar["settings"].items()}
    rows |= {"model": sidecar["model"], "recipe": sidecar["recipe"]["name"], "device": sidecar["device"]["kind"]}
    return _table(rows | sidecar["versions"])


def _seconds(value: float | int) -> str:
    return f"{value:.2f} s"


def _size(count: float | int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _bars(rows: Mapping[str, float | int], text: Any) -> str:
    longest = max(rows.values(), default=0) or 1
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th><td><span class='bar' style='width:{18 * value / longest:.2f}rem'></span>"
        f"{text(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table>{cells}</table>"


def _table(rows: Mapping[str, str]) -> str:
    cells = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
    return f"<table>{cells}</table>"
