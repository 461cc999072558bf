"""Everything that needs a GPU, in one run of limited length.

The GPU tests; the tables of what kernels are judged by, with the configurations at hand; tuning; then all tables, with
what tuning found, and again the judged ones first.

Every step is processes of its own under a time limit, so that a kernel that hangs or breaks its context costs only
itself. A test that never ends, or fails otherwise than by an assertion, is tried again alone. What is done is in the
output folder at once, and a second run with the same folder goes on from there.
"""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.kernels import verdicts
from sixbit_jax import outputs

ROOT = Path(__file__).resolve().parents[2]
STEPS = ("tests", "bars", "tune", "tables")
SHARDS = 8  # test processes at a time: most of a GPU test is compiling
ALONE = 16  # tests tried again, at most
HANGS = 120  # seconds in which a shard has to say something
CASE_HANGS = 75  # seconds for one case of a benchmark, compiling and peers included
MOST_LOG = 4 << 20  # bytes

ENVIRONMENT = {
    # tests/conftest.py sets what is not set, for a CPU.
    "JAX_PLATFORMS": "",
    "XLA_FLAGS": "",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "PYTHONUNBUFFERED": "1",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
}
CACHED = {
    # Programs that make data and peers are the same in every step, and a second run has them all.
    "JAX_COMPILATION_CACHE_DIR": str(Path(tempfile.gettempdir()) / "sixbit-jax-gpu"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}
QUICKLY = {
    # What a test compares with need not be fast, and trying ten ways to compile each of its products takes longest.
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",
    **CACHED,
    "JAX_COMPILATION_CACHE_DIR": CACHED["JAX_COMPILATION_CACHE_DIR"] + "-tests",
}
# Without pyproject's options: they want packages that only the suite needs, and turn warnings into errors.
PYTEST = ("-m", "pytest", "-o", "addopts=", "-o", "filterwarnings=default", "-p", "no:cacheprovider")
GOOD = ("PASSED", "SKIPPED")


@dataclasses.dataclass(frozen=True)
class Session:
    output: Path
    seconds: float
    kernels: tuple[str, ...]
    tunable: tuple[str, ...]
    grep: str = ""
    tests: tuple[str, ...] = ("tests/gpu",)
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
        path = self.output / "tests.jsonl"
        path.unlink(missing_ok=True)
        tests = breadth_first(self._collect("not slow"))
        found = self._run_shards([tests[i::SHARDS] for i in range(SHARDS) if tests[i::SHARDS]], path, QUICKLY)
        again = [test for test in tests if _may_be_another_s_fault(found.get(test))]
        alone: dict[str, Any] = {}
        for start in range(0, min(len(again), ALONE), SHARDS):
            shards = [[test] for test in again[start : start + SHARDS]]
            alone |= self._run_shards(shards, self.output / f"tests-alone-{start}.jsonl", QUICKLY)
        if slow := self._collect("slow"):  # they time: one at a time, of programs as they are in use
            found |= self._run_shards([slow], path, {})
        lines = [_line(test, found.get(test), alone.get(test)) for test in tests + slow]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def _collect(self, marked: str) -> list[str]:
        command = [sys.executable, *PYTEST, "--collect-only", "-q", "-m", marked, *self.tests]
        environment = _environment() | {"JAX_PLATFORMS": "cpu"}  # a GPU takes seconds to start
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True)
        self._log(done.stdout[-2000:] + done.stderr[-2000:])
        return [line for line in done.stdout.splitlines() if "::" in line and not line.startswith(("ERROR", " "))]

    def _run_shards(self, shards: list[list[str]], path: Path, environment: dict[str, str]) -> dict[str, Any]:
        """Every test's last line in `path`, which the processes write as they go."""
        logs = [self.output / f"shard-{i}.log" for i in range(len(shards))]
        environment = _environment() | environment | {verdicts.VARIABLE: str(path.resolve())}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        processes = []
        for shard, log in zip(shards, logs, strict=True):
            command = [sys.executable, *PYTEST, "-p", verdicts.__name__, "-v", "--tb=short", *shard]
            with log.open("w") as file:
                processes.append(subprocess.Popen(command, cwd=self.root, env=environment, stdout=file, stderr=file))
        while any(process.poll() is None for process in processes):
            for process, log in zip(processes, logs, strict=True):
                if process.poll() is None and (self.left() < 0 or time.time() - log.stat().st_mtime > HANGS):
                    process.kill()
            time.sleep(0.2)
        for log in logs:
            self._log(log.read_text(errors="replace"))
            log.unlink()
        return outputs.read_lines(path, "test")

    # Tables and tuning.

    def _bars(self) -> None:
        self._benchmark("kernels", self.kernels, self.output / "bars.jsonl", "--deciding")

    def _tune(self) -> None:
        self._benchmark("tune", [name for name in self.kernels if name in self.tunable], self.output / "tune.jsonl")
        tables = {path.parent.name: json.loads(path.read_text()) for path in sorted(self.root.glob(TABLES))}
        (self.output / "tuned.json").write_text(json.dumps(tables, indent=1, sort_keys=True) + "\n")

    def _tables(self) -> None:
        self._benchmark("kernels", self.kernels, self.output / "kernels.jsonl")

    def _benchmark(self, command: str, names: Sequence[str], output: Path, *more: str) -> None:
        """Again after a crash or a hang, which costs one case, while there is time."""
        running, done = output.with_suffix(".running"), -1
        # Without another line or a case that was running, it would only end the same way again.
        while names and self.left() > 5 and (len(_read(output)) > done or running.exists()):
            done = len(_read(output))
            # A case that was started in time may end a little late.
            seconds = str(int(max(self.left() - 10, 5)))
            arguments = [command, *names, "--output", str(output), "--seconds", seconds, "--grep", self.grep, *more]
            code = self._watch([sys.executable, "scripts/benchmark.py", *arguments], running)
            if code in (0, 2):  # done, or refused
                return

    def _watch(self, command: list[str], running: Path) -> int:
        """Until it ends, or has been killed: when the time is up, or a case takes too long."""
        log = self.output / "benchmark.log"
        with log.open("w") as file:
            started = time.time()
            process = subprocess.Popen(
                command, cwd=self.root, env=_environment() | CACHED, stdout=file, stderr=subprocess.STDOUT, text=True
            )
            while process.poll() is None:
                if self.left() < 0 or _age(running, started) > CASE_HANGS:
                    process.kill()
                time.sleep(0.2)
        self._log(f"$ {' '.join(command)}\n{log.read_text(errors='replace')}")
        log.unlink()
        return process.returncode

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
        bad = [line for line in tests if line["outcome"] not in GOOD]
        counts = ", ".join(f"{sum(line['outcome'] == kind for line in tests)} {kind.lower()}" for kind in GOOD)
        lines = [f"- {line['test']}: {_in_words(line)}" for line in bad]
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
        paths = (self.output / name for name in ("bars.md", "kernels.md"))
        return "\n".join(path.read_text() for path in paths if path.exists())


TABLES = "pallas_kernels/*/tuned.json"


def adopt(tuned: Path) -> list[Path]:
    """Put the tables of a session's tuned.json where the kernels read them."""
    written = []
    for kernel, table in json.loads(tuned.read_text()).items():
        path = ROOT / "pallas_kernels" / kernel / "tuned.json"
        path.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
        written.append(path)
    return written


def breadth_first(tests: Sequence[str]) -> list[str]:
    """One of every test function, then another of every: a run that is cut off has seen a little of everything."""
    cases: dict[str, list[str]] = {}
    for test in tests:
        cases.setdefault(test.partition("[")[0], []).append(test)
    return [test for turn in itertools.zip_longest(*cases.values()) for test in turn if test is not None]


def _may_be_another_s_fault(line: dict[str, Any] | None) -> bool:
    """A kernel that breaks its context fails what runs after it in the process; but a wrong number is a test's own."""
    if line is None or line["outcome"] == "STARTED":
        return True
    return line["outcome"] not in GOOD and not line.get("message", "").startswith("AssertionError")


def _line(test: str, together: dict[str, Any] | None, alone: dict[str, Any] | None) -> dict[str, Any]:
    found = {"test": test, **(together or {"outcome": "not run"})}
    found["outcome"] = "no end" if found["outcome"] == "STARTED" else found["outcome"]
    if alone is not None:
        found |= {"alone": alone["outcome"].replace("STARTED", "no end"), "alone_message": alone.get("message", "")}
    return found


def _in_words(line: dict[str, Any]) -> str:
    said = "; alone ".join(filter(None, (line.get("message"), line.get("alone_message"))))
    return f"{line['outcome']}, alone {line.get('alone', 'not tried')}" + (f": {said}" if said else "")


def _age(path: Path, since: float) -> float:
    """Seconds since it was written, but not before `since`; of what does not exist, none."""
    try:
        return time.time() - max(path.stat().st_mtime, since)
    except FileNotFoundError:
        return 0.0


def _environment() -> dict[str, str]:
    return {**os.environ, **ENVIRONMENT}


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
