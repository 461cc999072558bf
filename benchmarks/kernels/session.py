"""Everything that needs a GPU, in one run of limited length: the GPU tests, then tuning, then the tables.

Every step is processes of its own under a time limit, so that a kernel that hangs or breaks its context costs only
itself. A test that fails or never ends is tried again alone. What is done is in the output folder, and a second run
with the same folder goes on from there.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STEPS = ("tests", "tune", "tables")
SHARDS = 8  # test processes at a time: most of a GPU test is compiling
ALONE = 16  # tests tried again, at most
HANGS = 120  # seconds in which a shard has to say something
MOST_LOG = 4 << 20  # bytes

ENVIRONMENT = {
    # tests/conftest.py sets what is not set, for a CPU.
    "JAX_PLATFORMS": "",
    "XLA_FLAGS": "",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "PYTHONUNBUFFERED": "1",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
}
# Without pyproject's options: they want packages that only the suite needs, and turn warnings into errors.
PYTEST = ("-m", "pytest", "-o", "addopts=", "-o", "filterwarnings=default", "-p", "no:cacheprovider")


@dataclasses.dataclass(frozen=True)
class Session:
    output: Path
    seconds: float
    kernels: tuple[str, ...]
    tunable: tuple[str, ...]
    grep: str = ""
    tests: str = "tests/gpu"
    root: Path = ROOT
    started: float = dataclasses.field(default_factory=time.monotonic)

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.started)

    def run(self, steps: Sequence[str]) -> str:
        """All steps, then the summary, which is also in summary.md."""
        self.output.mkdir(parents=True, exist_ok=True)
        for step in steps:
            getattr(self, f"_{step}")()
        summary = self._summary()
        (self.output / "summary.md").write_text(summary)
        return summary

    # Tests.

    def _tests(self) -> None:
        collected = self._collect()
        if not collected:
            return
        outcomes = self._run_shards([collected[i::SHARDS] for i in range(SHARDS) if collected[i::SHARDS]])
        again = [test for test in collected if outcomes.get(test, "no end") not in ("PASSED", "SKIPPED", "XFAIL")]
        alone: dict[str, str] = {}
        for start in range(0, min(len(again), ALONE), SHARDS):
            alone |= self._run_shards([[test] for test in again[start : start + SHARDS]])
        lines = [
            {"test": test, "outcome": outcomes.get(test, "no end"), **({"alone": alone[test]} if test in alone else {})}
            for test in collected
        ]
        (self.output / "tests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def _collect(self) -> list[str]:
        command = [sys.executable, *PYTEST, "--collect-only", "-q", self.tests]
        done = subprocess.run(command, cwd=self.root, env=_environment(), capture_output=True, text=True)
        self._log(done.stdout[-2000:] + done.stderr[-2000:])
        return [line for line in done.stdout.splitlines() if "::" in line and not line.startswith(("ERROR", " "))]

    def _run_shards(self, shards: list[list[str]]) -> dict[str, str]:
        logs = [self.output / f"shard-{i}.log" for i in range(len(shards))]
        processes = []
        for shard, log in zip(shards, logs, strict=True):
            command = [sys.executable, *PYTEST, "-v", "-rf", "--tb=short", *shard]
            with log.open("w") as file:
                processes.append(subprocess.Popen(command, cwd=self.root, env=_environment(), stdout=file, stderr=file))
        while any(process.poll() is None for process in processes):
            for process, log in zip(processes, logs, strict=True):
                if process.poll() is None and (self.left() < 0 or time.time() - log.stat().st_mtime > HANGS):
                    process.kill()
            time.sleep(0.2)
        outcomes: dict[str, str] = {}
        for log in logs:
            text = log.read_text(errors="replace")
            outcomes |= {
                test: outcome for test, outcome in re.findall(r"^(\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED)", text, re.M)
            }
            self._log(text)
            log.unlink()
        return outcomes

    # Tuning and tables.

    def _tune(self) -> None:
        self._each("tune", [name for name in self.kernels if name in self.tunable], self.output / "tune.jsonl")
        tables = {path.parent.name: json.loads(path.read_text()) for path in sorted(self.root.glob(TABLES))}
        (self.output / "tuned.json").write_text(json.dumps(tables, indent=1, sort_keys=True) + "\n")

    def _tables(self) -> None:
        self._each("kernels", list(self.kernels), self.output / "kernels.jsonl")

    def _each(self, command: str, names: list[str], output: Path) -> None:
        """No kernel takes more than half of what is left, but for the last; what one leaves over is the next one's."""
        for i, name in enumerate(names):
            self._benchmark(command, name, self.left() / min(2, len(names) - i), output)

    def _benchmark(self, command: str, name: str, seconds: float, output: Path) -> None:
        """Again after a crash or a hang, which costs one case, while there is time."""
        until = time.monotonic() + min(seconds, self.left())
        while (rest := until - time.monotonic()) > 5:
            arguments = [command, name, "--output", str(output), "--seconds", str(int(rest)), "--grep", self.grep]
            process = subprocess.Popen(
                [sys.executable, "scripts/benchmark.py", *arguments],
                cwd=self.root,
                env=_environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            try:
                # A case that was started in time may end a little late.
                said, _ = process.communicate(timeout=min(rest + 45, max(self.left(), 1)))
            except subprocess.TimeoutExpired:
                process.kill()
                said, _ = process.communicate()
            self._log(f"$ {' '.join(arguments)}\n{said}")
            if process.returncode in (0, 2):  # done, or refused
                return

    # What is left behind.

    def _log(self, text: str) -> None:
        path = self.output / "session.log"
        if not path.exists() or path.stat().st_size < MOST_LOG:
            with path.open("a") as file:
                file.write(text[-200_000:] + "\n")

    def _summary(self) -> str:
        parts = [f"{self.seconds - self.left():.0f} s of {self.seconds:.0f} s"]
        parts += [self._tests_in_brief(), self._tuned_in_brief(), self._tables_in_brief()]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _tests_in_brief(self) -> str:
        tests = _read(self.output / "tests.jsonl")
        good = ("PASSED", "SKIPPED")
        bad = [line for line in tests if line["outcome"] not in good]
        counts = ", ".join(f"{sum(line['outcome'] == kind for line in tests)} {kind.lower()}" for kind in good)
        lines = [f"- {line['test']}: {line['outcome']}, alone {line.get('alone', 'not tried')}" for line in bad]
        return "\n".join([f"Tests: {counts}, {len(bad)} else", *lines]) if tests else ""

    def _tuned_in_brief(self) -> str:
        best: dict[tuple[str, str], dict[str, Any]] = {}
        lines = _read(self.output / "tune.jsonl")
        for line in lines:
            key = line["kernel"], line["case"]
            if "ms" in line and line["ms"] < best.get(key, line | {"ms": float("inf")})["ms"]:
                best[key] = line
        rows = [f"- {kernel}, {case}: {line['ms']:.4f} ms {line['config']}" for (kernel, case), line in best.items()]
        failed = [f"- {line['kernel']} {line['config']}: {line['failed']}" for line in lines if "failed" in line]
        return "\n".join([f"Tuned: {len(best)} cases of {len(lines)} candidates", *rows, *failed]) if lines else ""

    def _tables_in_brief(self) -> str:
        path = self.output / "kernels.md"
        return path.read_text() if path.exists() else ""


TABLES = "pallas_kernels/*/tuned.json"


def adopt(tuned: Path) -> list[Path]:
    """Put the tables of a session's tuned.json where the kernels read them."""
    written = []
    for kernel, table in json.loads(tuned.read_text()).items():
        path = ROOT / "pallas_kernels" / kernel / "tuned.json"
        path.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
        written.append(path)
    return written


def _environment() -> dict[str, str]:
    return {**os.environ, **ENVIRONMENT}


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
