"""One video beside the same video of the reference recipe, and what many such pairs say together.

Both start from the same noise, so whatever differs is the recipe's doing. A measurement is a flat dict of numbers; what
another recipe needs to be judged by is one more key, and the table below has one more column.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sixbit_jax.evaluate.captions import measure, score
from sixbit_jax.evaluate.metrics import Latents, psnr, relative_error, ssim
from sixbit_jax.evaluate.pixels import Video
from sixbit_jax.tiny.attributes import Attributes

# A figure of one video; None where it has no number (the PSNR of a video with itself).
Figures = Mapping[str, float | None]


def compare(video: Video, latents: Latents, reference: Video, reference_latents: Latents) -> dict[str, float | None]:
    """Distances of a video from its reference."""
    decibels = psnr(video, reference)
    return {
        "psnr_db": decibels if math.isfinite(decibels) else None,
        "ssim": ssim(video, reference),
        "latent_error": relative_error(latents, reference_latents),
    }


def judge(video: Video, truth: Attributes | None) -> dict[str, float]:
    """1 or 0 for each attribute that the caption names; nothing when the truth is not known."""
    if truth is None:
        return {}
    return {f"caption/{name}": float(right) for name, right in score(measure(video), truth).items()}


@dataclasses.dataclass(frozen=True)
class Summary:
    """One recipe over all its pairs."""

    recipe: str
    videos: int
    identical: int  # videos without a single different byte
    means: dict[str, float]
    errors: dict[str, float]  # standard errors of the means
    caption_accuracy: float | None
    accuracy_change: float | None  # against the reference, in points
    accuracy_change_error: float | None
    weight_bytes: dict[str, int]
    dense_bytes: dict[str, int]


def summarize(recipe: str, runs: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]) -> Summary:
    """Pair each run with the reference run in the same place."""
    figures = [run["figures"] for run in runs]
    names = list(dict.fromkeys(name for each in figures for name in each))
    known = {name: [each[name] for each in figures if each.get(name) is not None] for name in names}
    change = _accuracy_change(figures, [run["figures"] for run in references])
    return Summary(
        recipe=recipe,
        videos=len(runs),
        identical=sum(each.get("psnr_db") is None for each in figures),
        means={name: float(np.mean(values)) for name, values in known.items() if values},
        errors={name: _standard_error(values) for name, values in known.items() if values},
        caption_accuracy=_mean([_accuracy(each) for each in figures]),
        accuracy_change=_mean(change),
        accuracy_change_error=_standard_error(change) if change else None,
        weight_bytes=runs[0]["weight_bytes"],
        dense_bytes=runs[0]["dense_bytes"],
    )


def markdown(summaries: Sequence[Summary]) -> str:
    """The table, one recipe a row."""
    header = "| " + " | ".join(_COLUMNS) + " |\n" + "|---" * len(_COLUMNS) + "|\n"
    rows = ("| " + " | ".join(cell(each) for cell in _COLUMNS.values()) + " |\n" for each in summaries)
    return header + "".join(rows)


def _accuracy(figures: Figures) -> float | None:
    """The share of the caption's attributes that one video shows, in percent."""
    answers = [value for name, value in figures.items() if name.startswith("caption/") and value is not None]
    return 100 * float(np.mean(answers)) if answers else None


def _accuracy_change(figures: Sequence[Figures], references: Sequence[Figures]) -> list[float]:
    pairs = zip(map(_accuracy, figures), map(_accuracy, references), strict=True)
    return [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def _figure(name: str, digits: int) -> Callable[[Summary], str]:
    def cell(summary: Summary) -> str:
        if name not in summary.means:
            return "identical"
        return f"{summary.means[name]:.{digits}f} ± {summary.errors[name]:.{digits}f}"

    return cell


def _accuracy_cell(summary: Summary) -> str:
    return "" if summary.caption_accuracy is None else f"{summary.caption_accuracy:.1f} %"


def _change_cell(summary: Summary) -> str:
    if summary.accuracy_change is None:
        return ""
    return f"{summary.accuracy_change:+.1f} ± {summary.accuracy_change_error:.1f}"


def _bytes_cell(summary: Summary) -> str:
    stored, dense = summary.weight_bytes["transformer"], summary.dense_bytes["transformer"]
    return f"{stored / 1e6:.2f} MB ({dense / stored:.2f}x)"


def _bits_cell(summary: Summary) -> str:
    """Of what ran, and where something was skipped, with no bits for that."""
    if "activation_bits" not in summary.means:
        return ""
    ran = f"{summary.means['activation_bits']:.2f}"
    whole = summary.means.get("activation_bits_with_skipped")
    return f"{ran} ({whole:.2f})" if whole is not None and summary.means.get("skip_rate") else ran


def _realised_cell(name: str, text: Callable[[float], str]) -> Callable[[Summary], str]:
    return lambda summary: text(summary.means[name]) if name in summary.means else ""


# Title and cell of every column, in order.
_COLUMNS: dict[str, Callable[[Summary], str]] = {
    "recipe": lambda summary: summary.recipe,
    "videos": lambda summary: str(summary.videos),
    "PSNR, dB": _figure("psnr_db", 2),
    "SSIM": _figure("ssim", 4),
    "latent error": _figure("latent_error", 4),
    "caption accuracy": _accuracy_cell,
    "change, points": _change_cell,
    "activation bits (skipped: none)": _bits_cell,
    "blocks skipped": _realised_cell("skip_rate", lambda rate: f"{100 * rate:.1f} %"),
    "transformer weights (smaller by)": _bytes_cell,
}
