"""`scripts/quantize.py`, `scripts/evaluate.py` and `scripts/sample.py --recipe` as a person runs them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from refusals import refusal_of

from converters.convert import cached
from converters.random_pipeline import write_random_pipeline

ROOT = Path(__file__).resolve().parents[2]
VIDEO = ("--num-frames", "5", "--steps", "2")
SMALL = (*VIDEO, "--height", "32", "--width", "32")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_random_pipeline(folder, "tiny", seed=1)
    for dtype in ("f32", "bf16"):
        cached(folder, dtype)  # what the first run says of converting is not the subject here
    return folder


@pytest.fixture(scope="module")
def quantized(model, tmp_path_factory):
    """Made as the README says, with calibration."""
    folder = tmp_path_factory.mktemp("quantized")
    (folder / "prompts.txt").write_text("a red circle\ntwo blue stars\n")
    calibration = ("--calibrate-prompts", folder / "prompts.txt", "--calibrate-steps", 2)
    recipe = ("--recipe", "smoothquant-w4a4", "--text-encoder-recipe", "w4a16", "--dtype", "f32")
    output = ("--output", folder / "out", "--save-statistics", folder / "statistics.npz")
    done = run("quantize", "--input", model, *recipe, *calibration, *output)
    assert done.returncode == 0, done.stderr
    assert "transformer: 7 weights quantized" in done.stdout
    assert "text_encoder: 4 weights quantized" in done.stdout
    return folder


def run(script, *arguments):
    command = [sys.executable, ROOT / "scripts" / f"{script}.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def assert_refused(script, arguments, words, monkeypatch):
    message = refusal_of(script, arguments, monkeypatch)
    for word in words:
        assert word in message


def test_a_quantized_checkpoint_samples_under_its_own_recipe(quantized, tmp_path):
    done = run("sample", "--model", quantized / "out", "--prompt", "x", *SMALL, "--output", tmp_path / "v.mp4")
    assert done.returncode == 0, done.stderr
    assert "recipe smoothquant-w4a4 (f32): transformer" in done.stdout
    assert "smaller than" in done.stdout
    sidecar = json.loads((tmp_path / "v.json").read_text())
    assert sidecar["recipe"]["name"] == "smoothquant-w4a4"
    assert sidecar["mean_activation_bits"] == 4
    assert sidecar["weight_bytes"]["transformer"] < sidecar["dense_weight_bytes"]["transformer"]


def test_a_recipe_quantizes_at_load(model, quantized, tmp_path):
    balanced = ("--recipe", "smoothquant-w4a4", "--statistics", quantized / "statistics.npz", "--dry-run")
    done = run("sample", "--model", model, "--prompt", "x", *SMALL, *balanced, "--output", tmp_path / "v.mp4")
    assert done.returncode == 0, done.stderr
    assert "transformer/blocks/ffn_in/weight: 2 of (512, 256) nvfp4, smoothed, activations nvfp4: " in done.stdout


def test_other_recipes_of_a_quantized_checkpoint_are_refused(quantized, tmp_path):
    done = run("sample", "--model", quantized / "out", "--recipe", "w4a8", "--prompt", "x", "--output", tmp_path)
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.strip().splitlines()
    for words in ("quantized with recipe smoothquant-w4a4", "not those of w4a8", "leave --recipe out"):
        assert words in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "w4a9"], ["--recipe", 'did you mean "w4a8"']),
        (["--recipe", "bf16"], ["--recipe bf16: quantizes nothing", "scripts/convert.py"]),
        (["--recipe", "viditq-w4a8"], ['"viditq-w4a8"', "needs statistics", "--calibrate-prompts"]),
        (["--recipe", "w4a8", "--statistics", "{tmp}/absent.npz"], ["--statistics", "No such file"]),
        (["--recipe", "w4a8", "--calibrate-prompts", "{tmp}/absent.txt"], ["--calibrate-prompts", "No such file"]),
        (["--recipe", "w4a8", "--text-encoder-recipe", "quarot-w4a4"], ["text_encoder/blocks", "block=128"]),
        (["--recipe", "{tmp}/rule.json"], ['"blocks/ffn_inn/*" matches no linear weight', "blocks/ffn_in/weight"]),
        (["--recipe", "w4a8", "--input", "{tmp}/nothing"], ["--input", "no such file or folder"]),
        (["--recipe", "w4a8", "--output", "{tmp}"], ["choose another --output"]),
    ],
)
def test_mistakes_in_quantizing_are_one_line_and_leave_nothing(model, tmp_path, monkeypatch, arguments, words):
    rule = {"kind": "WeightRule", "paths": "blocks/ffn_inn/*", "method": {"kind": "MinMax"}}
    (tmp_path / "rule.json").write_text(json.dumps({"kind": "Recipe", "name": "mine", "weights": [rule]}))
    before = sorted(os.listdir(tmp_path))
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    for flag, value in (("--input", model), ("--output", tmp_path / "out")):
        if flag not in arguments:
            arguments += [flag, value]
    assert_refused("quantize", arguments, words, monkeypatch)
    assert sorted(os.listdir(tmp_path)) == before


def test_an_evaluation_is_continued(model, tmp_path):
    """One more recipe costs only its own videos, also when the last line of the runs was cut short."""
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    shared = ("--model", model, "--prompts", tmp_path / "prompts.txt", "--dtype", "f32", *SMALL)
    output = ("--output", tmp_path / "out")
    assert run("evaluate", "--recipes", "w8a8", *shared, *output).returncode == 0
    lines = (tmp_path / "out" / "runs.jsonl").read_text()
    assert [json.loads(line)["recipe"] for line in lines.splitlines()] == ["f32", "w8a8"]
    with (tmp_path / "out" / "runs.jsonl").open("a") as file:
        file.write(lines[:50] + "\n")
    done = run("evaluate", "--recipes", "w8a8,w4a4", "--processes", "2", "--batch", "2", *shared, *output)
    assert done.returncode == 0, done.stderr
    after = (tmp_path / "out" / "runs.jsonl").read_text().splitlines()
    assert "\n".join(after[:2]) + "\n" == lines
    assert [json.loads(line)["recipe"] for line in after[3:]] == ["w4a4"]
    data = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    means = {each["recipe"]: each["means"] for each in data["recipes"]}
    assert list(means) == ["f32", "w8a8", "w4a4"]
    assert means["f32"]["latent_error"] == 0
    assert 0 < means["w8a8"]["latent_error"] < means["w4a4"]["latent_error"]
    assert means["w8a8"]["activation_bits"] == 8
    page = (tmp_path / "out" / "evaluation.md").read_text()
    assert "| w4a4 | 1 |" in page
    assert "python scripts/evaluate.py --recipes w8a8,w4a4 --processes 2 --batch 2" in page


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_an_evaluation_and_its_processes(model, tmp_path, sent, code):
    """While they are at recipes that would take minutes."""
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    command = [
        sys.executable,
        ROOT / "scripts" / "evaluate.py",
        "--model",
        model,
        "--prompts",
        tmp_path / "prompts.txt",
    ]
    command += ["--recipes", "w8a8,w4a8", "--dtype", "f32", "--processes", "2", "--num-frames", "5", "--steps", "400"]
    command += ["--output", tmp_path / "out"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 200
        while len(_members(process.pid)) < 3 and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(sent)
        process.wait(timeout=60)
    seen = (tmp_path / "log").read_text()
    assert process.returncode == code, seen
    assert "interrupted" in seen
    deadline = time.monotonic() + 20
    while _members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _members(process.pid)


def _members(session: int) -> list[int]:
    """Processes of a session that are not over."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended since
            state, _, _, its_session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state not in "ZX":
                found.append(int(folder.name))
    return found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipes", "w4a8,w4a9"], ["--recipe", 'did you mean "w4a8"']),
        (["--recipes", ","], ["--recipes", "names none"]),
        (["--recipes", "w4a8", "--seeds", "0"], ["--seeds 0", "at least 1"]),
        (["--recipes", "w4a8", "--processes", "0"], ["--processes 0", "at least 1"]),
        (["--recipes", "w4a8", "--batch", "0"], ["--batch 0", "at least 1"]),
        (["--recipes", "w4a8", "--held-out", "2"], ["--held-out", "not allowed with", "--prompts"]),
        (["--recipes", "viditq-w4a8"], ["needs statistics", "--calibrate-prompts"]),
        (["--recipes", "w4a8", "--output", "{tmp}/prompts.txt"], ["--output", "is not a folder"]),
    ],
)
def test_mistakes_in_evaluating_are_one_line(model, tmp_path, monkeypatch, arguments, words):
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    if "--output" not in arguments:
        arguments += ["--output", tmp_path / "out"]
    shared = ("--model", model, "--prompts", tmp_path / "prompts.txt", *SMALL)
    assert_refused("evaluate", (*shared, *arguments), words, monkeypatch)
    assert not (tmp_path / "out").exists()
