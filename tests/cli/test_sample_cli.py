"""`scripts/sample.py` as a person runs it.

A video, its sidecar and its report; every mistake one line and nothing written.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from refusals import refusal_of

from converters.convert import cached
from converters.random_pipeline import write_random_pipeline
from sixbit_jax.video import read_mp4

ROOT = Path(__file__).resolve().parents[2]
# Thresholds for a model without a calibration.
BY_HAND = ("--recipe", "6bit", "--dtype", "f32", "--tau", "2", "--error-threshold", "0.3")
QUICK = ("--prompt", "a red circle", "--size", "48*32", "--num-frames", "5", "--steps", "2")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_random_pipeline(folder, "tiny", seed=1)
    cached(folder, "f32")  # what the first run says of converting is not the subject here
    return folder


def command(model, *arguments):
    return [sys.executable, str(ROOT / "scripts" / "sample.py"), "--model", str(model), *map(str, arguments)]


def run(model, *arguments, **variables):
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(
        command(model, *arguments), env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_video_with_everything(model, tmp_path):
    video, latents = tmp_path / "v.mp4", tmp_path / "l.npy"
    done = run(model, *QUICK, "--output", video, "--save-latents", latents, "--report", "--seed", 3, "--fps", 8)
    assert done.returncode == 0, done.stderr
    assert read_mp4(video).shape == (5, 32, 48, 3)
    assert np.load(latents).shape == (1, 16, 2, 4, 6)
    sidecar = json.loads(video.with_suffix(".json").read_text())
    assert sidecar["settings"]["seed"] == 3
    assert sidecar["recipe"]["name"] == "f32"
    assert sidecar["mean_activation_bits"] == 16
    assert set(sidecar["timings_s"]) == {"text", "compile", "denoise", "decode"}
    assert "data:video/mp4;base64," in video.with_suffix(".html").read_text()
    assert sorted(os.listdir(tmp_path)) == ["l.npy", "v.html", "v.json", "v.mp4"]
    assert "100%" in done.stderr, "the bar reaches its end"
    assert str(video) in done.stdout


def test_adaptive_recipes_run_by_hand_and_report_beside_their_twin(model, tmp_path):
    video = tmp_path / "v.mp4"
    done = run(model, *QUICK[:-2], "--steps", 5, *BY_HAND, "--output", video, "--report")
    assert done.returncode == 0, done.stderr
    sidecar = json.loads(video.with_suffix(".json").read_text())
    assert 0 < sidecar["skip_rate"] < 0.5
    assert sidecar["mean_activation_bits_with_skipped"] < sidecar["mean_activation_bits"] <= 16
    assert sidecar["cache_bytes"] > 0
    assert sidecar["calibration"] is None
    page = video.with_suffix(".html").read_text()
    assert page.count("<video ") == 2
    assert "PSNR" in page
    assert sorted(os.listdir(tmp_path)) == ["v.html", "v.json", "v.mp4"], "the twin lives in the page alone"


def test_initial_latents_replace_the_seed(model, tmp_path):
    noise = np.random.default_rng(0).standard_normal((1, 16, 2, 4, 6)).astype(np.float32)
    np.save(tmp_path / "noise.npy", noise)
    results = []
    for seed in (1, 2):
        arguments = ("--init-latents", tmp_path / "noise.npy", "--save-latents", tmp_path / f"{seed}.npy")
        done = run(model, *QUICK, "--seed", seed, *arguments, "--output", tmp_path)
        assert done.returncode == 0, done.stderr
        results.append(np.load(tmp_path / f"{seed}.npy"))
    np.testing.assert_array_equal(*results)


def test_prompt_file_makes_one_video_a_line(model, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n\n  two blue stars \n")
    done = run(model, *QUICK[2:], "--prompt-file", tmp_path / "prompts.txt", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "out").glob("*.mp4"))
    assert names == ["000-a-red-circle-seed0.mp4", "001-two-blue-stars-seed0.mp4"]


def test_dry_run_writes_nothing(model, tmp_path):
    done = run(model, *QUICK, "--dry-run", "--output", tmp_path / "v.mp4")
    assert done.returncode == 0, done.stderr
    assert "TFLOP" in done.stdout
    assert "GiB" in done.stdout
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--height", "100"], ["--height 100", "the nearest is 96"]),
        (["--num-frames", "6"], ["--num-frames 6", "4n+1", "the nearest is 5"]),
        (["--size", "48"], ["--size 48", "832*480"]),
        (["--size", "48*32", "--width", "48"], ["--size", "--width"]),
        (["--solver", "eular"], ["--solver", 'did you mean "euler"']),
        (["--schedule", "diffuser"], ["--schedule", 'did you mean "diffusers"']),
        (["--recipe", "bf61"], ["--recipe", 'did you mean "bf16"']),
        (["--attention", "flash"], ["--attention", "xla"]),
        (["--cache-budget-gb", "1"], ["--cache-budget-gb", "no delta cache"]),
        (["--recipe", "6bit"], ["no calibration for", "scripts/calibrate.py --model", "--error-threshold and --tau"]),
        (["--recipe", "w4a8", "--tau", "0.1"], ["--tau", "no delta cache"]),
        ([*BY_HAND, "--cache-budget-gb", "1e-6", *QUICK[2:-2]], ["--cache-budget-gb", "hold no layer; one takes"]),
        ([*BY_HAND, "--preset", "{tmp}/empty.txt"], ["--preset", "not a preset"]),
        (["--dtype", "fp8"], ["--dtype", "bf16"]),
        (["--prompt-file", "{tmp}/empty.txt"], ["--prompt-file", "has no prompts"]),
        (["--prompt-file", "{tmp}/absent.txt"], ["--prompt-file", "No such file"]),
        (["--init-latents", "{tmp}/empty.txt"], ["--init-latents", "not a .npy file"]),
        (["--init-latents", "{tmp}/small.npy"], ["--init-latents", "(1, 16, 21, 60, 104)"]),
        (["--output", "{tmp}/v.avi"], ["--output", ".mp4"]),
        (["--output", "{tmp}/empty.txt/v.mp4"], ["--output", "not a folder"]),
        (["--save-latents", "{tmp}"], ["--save-latents", "is a folder"]),
        (["--promt", "x"], ["--promt", "did you mean --prompt"]),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(model, tmp_path, monkeypatch, capsys, arguments, words):
    (tmp_path / "empty.txt").write_text("\n")
    np.save(tmp_path / "small.npy", np.zeros((1, 16, 1, 2, 2), np.float32))
    before = sorted(os.listdir(tmp_path))
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    if "--init-latents" in arguments:
        arguments += ["--size", "832*480", "--num-frames", "81"]
    if "--prompt-file" not in arguments:
        arguments += ["--prompt", "x"]
    if "--output" not in arguments:
        arguments += ["--output", str(tmp_path / "out")]
    message = refusal_of("sample", ["--model", model, *arguments], monkeypatch)
    for word in words:
        assert word in message
    assert not said(capsys.readouterr().err)
    assert sorted(os.listdir(tmp_path)) == before


def said(stderr):
    """Whether there is a calibration is known by the weights, and a folder is converted once before they are."""
    return [line for line in stderr.strip().splitlines() if not line.startswith("converting ")]


def assert_refused(done, *words):
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = said(done.stderr)
    last = lines[-1]
    for word in words:
        assert word in last, done.stderr
    assert len(lines) == 1, done.stderr


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: None, ["no such folder"]),
        (lambda folder: folder.mkdir(), ["no weights found"]),
        (lambda folder: (folder / "transformer").mkdir(parents=True), ["no weights found"]),
        (lambda folder: (folder.mkdir(), (folder / "manifest.json").write_text("{")), ["manifest.json", "damaged"]),
    ],
)
def test_missing_and_broken_models_are_named(tmp_path, spoil, words):
    folder = tmp_path / "model"
    spoil(folder)
    assert_refused(run(folder, *QUICK, "--output", tmp_path / "v.mp4"), str(folder), *words)
    assert not (tmp_path / "v.mp4").exists()


def test_hub_ids_that_cannot_be_had_are_said(tmp_path):
    done = run("nobody/nothing", *QUICK, "--output", tmp_path / "v.mp4", HF_HUB_OFFLINE="1")
    assert_refused(done, "nobody/nothing", "the hub says")


def test_full_disk_is_said(model, tmp_path):
    """/dev/full takes no byte: as the folder's file system it stands for a full one."""
    done = run(model, *QUICK, "--output", tmp_path / "v.mp4", "--save-latents", "/dev/full/x.npy")
    assert_refused(done, "--save-latents")


def test_ctrl_c_stops_cleanly(model, tmp_path):
    """In the middle of a run that would take minutes: gone within seconds, nothing left."""
    arguments = ("--prompt", "x", "--size", "256*256", "--num-frames", "33", "--steps", "500")
    (tmp_path / "out").mkdir()
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command(model, *arguments, "--output", tmp_path / "out" / "v.mp4"),
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
        deadline = time.monotonic() + 120
        while " 2/500" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    seen = (tmp_path / "log").read_text()
    assert process.returncode == 130, seen
    assert "Traceback" not in seen
    assert "interrupted" in seen
    assert not os.listdir(tmp_path / "out")
