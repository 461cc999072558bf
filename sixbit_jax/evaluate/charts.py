"""Pictures of a run's trace, as SVG text for an HTML page: steps to the right, one row or one line a block."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

# From few bits to many; told apart without colour vision, since brightness falls all the way.
BIT_COLOURS = {4.0: (247, 209, 107), 8.0: (222, 114, 74), 16.0: (72, 36, 92)}
SKIP_COLOUR = "#e9edf1"
_LEAST_CELL, _MOST_CELL, _ROW, _MARGIN = 8, 24, 14, 46
_PLOT_WIDTH, _PLOT_HEIGHT, _HEADROOM = 620, 160, 8
_FONT = 'font-family="system-ui, sans-serif" font-size="11" fill="#555"'

Steps = Float[np.ndarray, "i l"]


def bits_colour(bits: float) -> str:
    """Between the colours of the widths next to it.

    >>> bits_colour(4.0), bits_colour(6.0)
    ('#f7d16b', '#eaa25a')
    """
    widths = sorted(BIT_COLOURS)
    channels = [np.interp(bits, widths, [BIT_COLOURS[width][channel] for width in widths]) for channel in range(3)]
    return "#" + "".join(f"{round(float(value)):02x}" for value in channels)


def step_block_map(
    bits: Float[np.ndarray, "i l g"], skipped: Bool[np.ndarray, "i l"], groups: Sequence[str] = ()
) -> str:
    """A grid; a cell has the colour of its block's mean width, and its title the width of every linear group."""
    steps, layers = skipped.shape
    cell = min(max(_PLOT_WIDTH // steps, _LEAST_CELL), _MOST_CELL)
    cells = []
    for step, layer in np.ndindex(steps, layers):
        widths = [f"{value:g}" for value in bits[step, layer]]
        named = [f"{name} {width}" for name, width in zip(groups, widths, strict=True)] if groups else widths
        told = "skipped" if skipped[step, layer] else f"{', '.join(named)} bits"
        colour = SKIP_COLOUR if skipped[step, layer] else bits_colour(float(bits[step, layer].mean()))
        cells.append(
            f'<rect x="{_MARGIN + step * cell}" y="{layer * _ROW}" width="{cell - 1}" height="{_ROW - 1}" '
            f'fill="{colour}"><title>step {step}, block {layer}: {told}</title></rect>'
        )
    height = layers * _ROW
    labels = [f'<text x="0" y="{_ROW - 3}" {_FONT}>block 0</text>']
    if layers > 1:
        labels.append(f'<text x="{_MARGIN - 6}" y="{height - 3}" text-anchor="end" {_FONT}>{layers - 1}</text>')
    labels += _step_labels(steps, [_MARGIN + (step + 0.5) * cell for step in range(steps)], height + 13)
    return _svg(_MARGIN + steps * cell, height + 18, [*cells, *labels], "map of steps and blocks")


def curves(values: Steps, shown: Bool[np.ndarray, "i l"], name: str) -> str:
    """One line a block, early ones light, with a dot at every step where `shown` is true. The scale starts at zero."""
    steps, layers = values.shape
    known = np.where(shown & np.isfinite(values), values, np.nan)
    top = max(float(np.nanmax(known)), 1e-9) if np.isfinite(known).any() else 1.0
    xs = _MARGIN + (np.arange(steps) + 0.5) / steps * _PLOT_WIDTH
    ys = _HEADROOM + _PLOT_HEIGHT * (1 - known / top)
    lines = [_line(xs, ys[:, layer], _shade(layer, layers), f"{name}, block {layer}") for layer in range(layers)]
    axes = [
        f'<line x1="{_MARGIN}" y1="{y}" x2="{_MARGIN + _PLOT_WIDTH}" y2="{y}" stroke="#ccc"/>'
        f'<text x="{_MARGIN - 6}" y="{y + 4}" text-anchor="end" {_FONT}>{value:.2g}</text>'
        for y, value in ((_HEADROOM, top), (_HEADROOM + _PLOT_HEIGHT, 0))
    ]
    labels = _step_labels(steps, list(xs), _HEADROOM + _PLOT_HEIGHT + 14)
    height = _HEADROOM + _PLOT_HEIGHT + 20
    return _svg(_MARGIN + _PLOT_WIDTH + 8, height, [*axes, *lines, *labels], f"{name} of every block")


def _line(xs: Float[np.ndarray, " i"], ys: Float[np.ndarray, " i"], colour: str, title: str) -> str:
    points = [(f"{x:.1f}", f"{y:.1f}") for x, y in zip(xs, ys, strict=True) if not np.isnan(y)]
    path = " ".join(f"{x},{y}" for x, y in points)
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="1.6" fill="{colour}"/>' for x, y in points)
    line = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-opacity="0.6"/>'
    return f"<g><title>{title}</title>{line}{dots}</g>"


def _step_labels(steps: int, xs: Sequence[float], y: int) -> list[str]:
    shown = sorted({0, *range(0, steps, max(1, 5 * round(steps / 25))), steps - 1})
    if len(shown) > 2 and shown[-1] - shown[-2] < 2:
        shown.pop(-2)
    return [f'<text x="{xs[step]:.1f}" y="{y}" text-anchor="middle" {_FONT}>{step}</text>' for step in shown]


def _shade(index: int, count: int) -> str:
    """From light blue to dark violet."""
    share = index / max(count - 1, 1)
    return f"rgb({round(120 - 48 * share)},{round(180 - 144 * share)},{round(222 - 130 * share)})"


def _svg(width: int, height: int, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
    )
