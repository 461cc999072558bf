"""The log of a training run: one JSON object a line, and the loss curve drawn from it as an SVG."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_WIDTH, _HEIGHT, _MARGIN = 720, 360, 50


class Journal:
    """`path` grows by a line a record; records of steps that a resumed run repeats are dropped first."""

    def __init__(self, path: Path, first_step: int):
        self._path = path
        kept = [record for record in _read(path) if record["step"] <= first_step]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in kept))

    def add(self, record: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def draw(self, metric: str) -> None:
        """The curve of one metric, beside the log."""
        records = _read(self._path)
        points = [(float(record["step"]), float(record[metric])) for record in records if record.get(metric, 0) > 0]
        self._path.with_suffix(".svg").write_text(curve(points, metric))


def curve(points: Sequence[tuple[float, float]], label: str) -> str:
    """An SVG of `points` with a logarithmic y axis.

    >>> curve([(0.0, 1.0), (10.0, 0.1)], "loss").startswith("<svg")
    True
    """
    if not points:
        points = [(0.0, 1.0)]
    steps, values = [x for x, _ in points], [y for _, y in points]
    low, high = math.log10(min(values)), math.log10(max(values))
    low, high = low - 0.05, high + 0.05
    across, down = (_WIDTH - 2 * _MARGIN) / max(max(steps), 1), (_HEIGHT - 2 * _MARGIN) / (high - low)
    place = lambda x, y: (_MARGIN + x * across, _MARGIN + (high - math.log10(y)) * down)
    line = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
    marks = [10 ** (low + (high - low) * part / 4) for part in range(5)]
    rows = [
        f'<text x="4" y="{place(0, y)[1] + 4:.1f}">{y:.3g}</text>'
        f'<path d="M{_MARGIN} {place(0, y)[1]:.1f}H{_WIDTH - _MARGIN}" stroke="#ddd"/>'
        for y in marks
    ]
    texts = [
        f'<text x="{_MARGIN}" y="20">{label}, {values[-1]:.4g} at step {steps[-1]:.0f}</text>',
        f'<text x="{_WIDTH - 2 * _MARGIN}" y="{_HEIGHT - 10}">step {max(steps):.0f}</text>',
    ]
    body = "".join([*rows, *texts, f'<polyline points="{line}" fill="none" stroke="#1f5fbf" stroke-width="1.5"/>'])
    frame = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-size="11"'
    return f'{frame} font-family="sans-serif"><rect width="100%" height="100%" fill="#fff"/>{body}</svg>\n'


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
