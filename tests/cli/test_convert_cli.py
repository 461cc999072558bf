"""`scripts/convert.py` and `scripts/random_model.py` as a person runs them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sixbit_jax import checkpoint

ROOT = Path(__file__).resolve().parents[2]


def command(script, *arguments):
    return [sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)]


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}


def run(script, *arguments):
    return subprocess.run(
        command(script, *arguments), env=environment(), capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    done = run("random_model.py", "--output", folder)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def test_convert_reports_and_writes(pipeline, tmp_path):
    done = run("convert.py", "--input", pipeline, "--output", tmp_path / "made", "--dtype", "bf16", "--verify")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("transformer: 69 tensors, 2.23 M parameters, 4.73 MB, ")
    assert lines[0].endswith("69 tensors verified")
    assert lines[-1].startswith(f"wrote {tmp_path / 'made'} (19.3")
    assert checkpoint.is_checkpoint(tmp_path / "made")
    assert os.listdir(tmp_path) == ["made"]


def assert_refused(done, tmp_path, *words):
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dtype", "fp16"], ["--dtype", "invalid choice: 'fp16'", "bf16"]),
        (["--verfy"], ["unrecognized arguments: --verfy", "did you mean --verify?"]),
        (["--component", "unet"], ["--component", "has no unet", "transformer"]),
        (["--input", "/not/there"], ["--input /not/there: no such file or folder"]),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(pipeline, tmp_path, arguments, words):
    done = run("convert.py", "--input", pipeline, "--output", tmp_path / "made", *arguments)
    assert_refused(done, tmp_path, *words)


def test_missing_flags_are_named(tmp_path):
    assert_refused(run("convert.py"), tmp_path, "--input", "--output")


def test_a_truncated_download_is_named(pipeline, tmp_path_factory, tmp_path):
    spoiled = tmp_path_factory.mktemp("spoiled") / "input"
    shutil.copytree(pipeline, spoiled)
    os.truncate(spoiled / "vae" / "diffusion_pytorch_model.safetensors", 10**6)
    done = run("convert.py", "--input", spoiled, "--output", tmp_path / "made")
    assert_refused(done, tmp_path, "vae/diffusion_pytorch_model.safetensors: truncated")


def test_overwriting_has_to_be_asked_for(pipeline, tmp_path):
    arguments = ["--input", pipeline, "--output", tmp_path / "made", "--component", "text_encoder"]
    assert run("convert.py", *arguments).returncode == 0
    refused = run("convert.py", *arguments)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "add --overwrite" in refused.stderr
    assert run("convert.py", *arguments, "--overwrite").returncode == 0


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that not even root can write")
def test_an_unwritable_output_is_one_line(pipeline, tmp_path):
    done = run("convert.py", "--input", pipeline, "--output", "/proc/self/made")
    assert_refused(done, tmp_path, "/proc/self/made: cannot be written")


def start_and_wait_for_partial(pipeline, tmp_path):
    """A conversion that has begun to write."""
    process = subprocess.Popen(
        command("convert.py", "--input", pipeline, "--output", tmp_path / "made", "--verify"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(6000):  # a busy machine takes its time to start a process
        if any(tmp_path.glob(".made.partial-*/transformer*")):
            return process
        time.sleep(0.02)
    raise AssertionError(f"never began to write: {process.communicate()}")


def test_ctrl_c_stops_cleanly(pipeline, tmp_path):
    process = start_and_wait_for_partial(pipeline, tmp_path)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "convert.py: interrupted\n")
    assert os.listdir(tmp_path) == []


def test_kill_leaves_nothing_that_loads_and_the_next_run_clears_up(pipeline, tmp_path):
    process = start_and_wait_for_partial(pipeline, tmp_path)
    process.kill()
    process.communicate(timeout=60)
    (leftover,) = tmp_path.iterdir()
    assert not checkpoint.is_checkpoint(leftover)
    assert not checkpoint.is_checkpoint(tmp_path / "made")
    assert run("convert.py", "--input", pipeline, "--output", tmp_path / "made").returncode == 0
    assert os.listdir(tmp_path) == ["made"]


def test_random_model_refuses_what_it_cannot_do(pipeline, tmp_path):
    assert_refused(run("random_model.py", "--output", tmp_path / "made", "--size", "2B"), tmp_path, "--size", "1.3B")
    existing = run("random_model.py", "--output", pipeline)
    assert (existing.returncode, existing.stderr.count("\n")) == (2, 1)
