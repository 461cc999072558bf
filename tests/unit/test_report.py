"""The HTML page: what it says is what the trace holds, and a browser shows it."""

import dataclasses
import html.parser
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sixbit_jax.evaluate.report import Twin, write_report
from sixbit_jax.sampler import Trace
from sixbit_jax.video import write_mp4

STEPS, BRANCHES, LAYERS, GROUPS = 6, 2, 3, ("self_qkv", "ffn_in")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclasses.dataclass(frozen=True)
class Words:
    prompt: str = "a <red> circle & more"


@dataclasses.dataclass(frozen=True)
class Run:
    trace: Trace
    settings: Words = Words()
    timings: Any = dataclasses.field(default_factory=lambda: {"denoise": 3.0, "decode": 1.0})


def trace(measured: bool = True) -> Trace:
    rng = np.random.default_rng(0)
    shape = (STEPS, BRANCHES, LAYERS)
    skipped = np.zeros(shape, bool)
    skipped[3, :, 1] = True
    numbers = {name: rng.uniform(0.1, 0.5, shape) for name in ("gamma", "change", "error")}
    numbers["change"][0] = np.inf
    return Trace(rng.integers(0, 3, (*shape, len(GROUPS))), skipped, numbers if measured else {})


SIDECAR: dict[str, Any] = {
    "recipe": {"name": "6bit"},
    "route_bits": [4, 8, 16],
    "skip_rate": 1 / 18,
    "mean_activation_bits": 6.5,
    "mean_activation_bits_with_skipped": 6.1,
    "calibration": "calibration of tiny at 6 steps",
    "weight_bytes": {"transformer": 10_000_000, "vae": 5_000_000},
    "dense_weight_bytes": {"transformer": 40_000_000, "vae": 5_000_000},
    "cache_bytes": 2_000_000,
    "peak_device_bytes": None,
    "peak_host_bytes": 2_500_000_000,
    "settings": {"seed": 3},
    "model": "tiny",
    "device": {"kind": "cpu"},
    "versions": {"jax": "0"},
}


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> list[Path]:
    """A red one and a blue one."""
    folder = tmp_path_factory.mktemp("films")
    for name, channel in (("ours", 0), ("twin", 2)):
        video = np.zeros((5, 64, 64, 3), np.uint8)
        video[..., channel] = 230
        write_mp4(folder / f"{name}.mp4", video, 8)
    return [folder / "ours.mp4", folder / "twin.mp4"]


@pytest.fixture(scope="module")
def page(films, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    twin = Twin(films[1], "bf16", 9.0, {"psnr_db": 31.2, "ssim": 0.91, "latent_error": 0.05})
    write_report(path, films[0], Run(trace()), SIDECAR, twin, GROUPS)
    return path


class Census(html.parser.HTMLParser):
    """Counts tags, and complains of those that are not closed."""

    def __init__(self, text: str):
        super().__init__()
        self.counts: dict[str, int] = {}
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in ("meta", "rect", "circle", "line", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect",):
            assert self.open.pop() == tag


def rects(text: str) -> list[str]:
    return re.findall(r"<title>(step[^<]*)</title></rect>", text)


def test_the_page_is_whole_and_says_what_happened(page):
    text = page.read_text()
    census = Census(text)
    assert not census.open
    assert census.counts["video"] == 2
    assert len(rects(text)) == STEPS * BRANCHES * LAYERS
    assert census.counts["polyline"] == 2 * BRANCHES * LAYERS, "a line a block, of gamma and of change"
    for words in ("a &lt;red&gt; circle &amp; more", "PSNR 31.2 dB", "6% of the block", "6.50", "6.10", "delta cache"):
        assert words in text
    assert "nan" not in text
    assert "inf" not in re.sub(r"base64,[^\"]*", "", text)
    assert not re.search(r"<script|https?://(?!www\.w3)", text), "nothing is fetched"


def test_the_map_is_the_trace(page):
    run = trace()
    titles = iter(rects(page.read_text()))
    for branch in range(BRANCHES):
        for step in range(STEPS):
            for layer in range(LAYERS):
                bits = np.array([4, 8, 16])[run.route[step, branch, layer]]
                told = ", ".join(f"{group} {width}" for group, width in zip(GROUPS, bits, strict=True)) + " bits"
                told = "skipped" if run.skipped[step, branch, layer] else told
                assert next(titles) == f"step {step}, block {layer}: {told}"


def test_without_twin_or_measurements_the_rest_is_there(films, tmp_path):
    write_report(tmp_path / "r.html", films[0], Run(trace(measured=False)), SIDECAR)
    text = (tmp_path / "r.html").read_text()
    census = Census(text)
    assert (census.counts["video"], census.counts.get("polyline", 0)) == (1, 0)
    assert len(rects(text)) == STEPS * BRANCHES * LAYERS


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome is installed to look at the page")
def test_a_browser_shows_it(page, tmp_path):
    """Both films side by side, the map's three widths and its skip: as colours where they have to be."""
    shot = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1100,1600"]
    # A page of no fixed time: without a virtual one, the picture may be taken before the first frame is decoded.
    flags += ["--virtual-time-budget=4000", f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}"]
    subprocess.run([str(CHROMIUM), *flags, page.as_uri()], check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    red = (pixels[..., 0] > 180) & (pixels[..., 1] < 60) & (pixels[..., 2] < 60)
    blue = (pixels[..., 2] > 180) & (pixels[..., 0] < 60) & (pixels[..., 1] < 60)
    assert red.sum() > 40_000
    assert blue.sum() > 40_000
    assert np.nonzero(red)[1].max() < np.nonzero(blue)[1].min(), "ours to the left of the twin"
    for colour in ((222, 114, 74), (233, 237, 241)):
        assert (np.abs(pixels - colour).max(-1) <= 2).sum() > 100
