"""`scripts/benchmark.py` without a GPU: one line that says so, exit code 2, nothing written."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["kernels", "int8_matmul"], "needs a GPU"),
        (["tune", "int8_matmull"], "int8_matmul"),
        (["kernels", "--grep"], "expected one argument"),
    ],
)
def test_mistakes_are_one_line(arguments, says):
    before = sorted((ROOT / "benchmarks").iterdir())
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted((ROOT / "benchmarks").iterdir()) == before
