"""One HTML page about one video: the video, what was decided at every step and block, where time and memory went.

The page is a single file without scripts or links to anywhere, so it can be mailed and still opens in ten years.
"""

import base64
import html
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from sixbit_jax.outputs import write_text

# One colour per route and one for a skipped block; distinguishable without colour vision.
ROUTE_COLOURS = ("#2b5b84", "#e0a13c", "#7f9f50", "#a05a8c")
SKIP_COLOUR = "#e8e8e8"
BRANCHES = ("prompt", "negative prompt")

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; color: #222; padding: 0 1rem }
video { width: 100%; max-width: 40rem; image-rendering: auto; background: #000 }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top }
h2 { margin-top: 2rem; font-size: 1.1rem } svg { display: block; margin: .3rem 0 1rem }
.key { display: inline-block; width: .9em; height: .9em; margin: 0 .3em 0 1em }
</style></head><body>
<h1>$title</h1>
<video src="data:video/mp4;base64,$video" controls autoplay loop muted playsinline></video>
<h2>Steps and blocks</h2>
<p>$summary $keys</p>
$maps
<h2>Time</h2>$timings
<h2>Memory</h2>$memory
<h2>Settings</h2>$settings
</body></html>
""")


def write_report(path: Path, video: Path, result: Any, sidecar: dict[str, Any]) -> None:
    """Write the page for a `Result` whose mp4 and sidecar already exist."""
    routes = sidecar["recipe"]["precision"]
    page = _PAGE.substitute(
        title=html.escape(result.settings.prompt or "untitled"),
        video=base64.b64encode(video.read_bytes()).decode(),
        summary=f"{sidecar['skip_rate']:.0%} of the block executions skipped, "
        f"{sidecar['mean_activation_bits']:.1f} activation bits on average.",
        keys=_keys(int(result.trace.route.max()) + 1, routes),
        maps="".join(
            f"<div>{name}</div>{step_block_map(route, skipped)}"
            for name, route, skipped in zip(
                BRANCHES, np.moveaxis(result.trace.route, 1, 0), np.moveaxis(result.trace.skipped, 1, 0), strict=False
            )
        ),
        timings=_table({stage: f"{seconds:.2f} s" for stage, seconds in result.timings.items()}),
        memory=_table(
            {f"weights, {name}": _size(count) for name, count in sidecar["weight_bytes"].items()} | _peaks(sidecar)
        ),
        settings=_table(
            {key: str(value) for key, value in sidecar["settings"].items()}
            | {"model": sidecar["model"], "recipe": sidecar["recipe"]["name"], "device": sidecar["device"]["kind"]}
            | sidecar["versions"]
        ),
    )
    write_text(path, page)


def step_block_map(route: Int[np.ndarray, "i l g"], skipped: Bool[np.ndarray, "i l"]) -> str:
    """An SVG grid, steps to the right and blocks downwards; a cell shows its block's most frequent route."""
    steps, layers = skipped.shape
    cell = 12
    cells = []
    for step in range(steps):
        for layer in range(layers):
            common = np.bincount(route[step, layer]).argmax()
            colour = SKIP_COLOUR if skipped[step, layer] else ROUTE_COLOURS[common % len(ROUTE_COLOURS)]
            state = "skipped" if skipped[step, layer] else f"route {common}"
            cells.append(
                f'<rect x="{step * cell}" y="{layer * cell}" width="{cell - 1}" height="{cell - 1}" fill="{colour}">'
                f"<title>step {step}, block {layer}: {state}</title></rect>"
            )
    return f'<svg width="{steps * cell}" height="{layers * cell}" role="img">{"".join(cells)}</svg>'


def _keys(routes: int, precision: dict[str, Any]) -> str:
    names = [f"route {index}" for index in range(routes)] if routes > 1 else [precision["kind"]]
    swatches = [*zip(names, ROUTE_COLOURS, strict=False), ("skipped", SKIP_COLOUR)]
    return "".join(f'<span class="key" style="background:{c}"></span>{html.escape(name)}' for name, c in swatches)


def _peaks(sidecar: dict[str, Any]) -> dict[str, str]:
    peaks = {"peak, device": sidecar["peak_device_bytes"], "peak, host": sidecar["peak_host_bytes"]}
    return {name: _size(count) for name, count in peaks.items() if count}


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _table(rows: dict[str, str]) -> str:
    cells = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in rows.items())
    return f"<table>{cells}</table>"
