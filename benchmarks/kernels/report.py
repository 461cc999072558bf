"""Run the cases of some kernels; write JSON lines and a Markdown table, or a table of tuned configurations.

Everything is a line in a file before the next case starts, and a run goes on where the one before it stopped: a case
already there is left out, and one that was running when the process ended counts as failed.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from benchmarks.kernels.measure import Ceilings, ceilings, provenance
from pallas_kernels.tables import write_entry
from sixbit_jax.errors import UserError

Line = dict[str, Any]
FOREVER = float("inf")


def measure(
    modules: Sequence[ModuleType], grep: str, output: Path, *, seconds: float = FOREVER, deciding: bool = False
) -> None:
    """Every matching case, or those that decide; one that fails is recorded with its error, and the rest go on."""
    _require_gpu()
    journal, best, origin = Journal(output), ceilings(), provenance()
    for module, deadline in _in_turn(modules, seconds):
        for case in _matching(module, grep, deciding):
            key = {"kernel": module.NAME, **dataclasses.asdict(case)}
            if journal.has(key) or time.monotonic() > deadline:
                continue
            with journal.running(key):
                result = _attempt(module, case, best)
            print(json.dumps(result), flush=True)
            reached = {"copy_tb_per_s": best.copy * 1e-12, "bf16_tflops": best.bf16 * 1e-12}
            journal.add({"kernel": module.NAME, **result, **reached, **origin})
            output.with_suffix(".md").write_text(render(journal.lines, modules))


def tune(modules: Sequence[ModuleType], grep: str, output: Path, *, seconds: float = FOREVER) -> None:
    """The fastest candidate of every matching case, into the kernel's table. A wrong result disqualifies."""
    _require_gpu()
    journal, kind, origin = Journal(output), jax.devices()[0].device_kind, provenance()
    for module, deadline in _in_turn(modules, seconds):
        for case in [case for case in module.tuned_cases() if grep in str(case)]:
            path, table_case = module.table_key(case)
            for config in module.candidates(case):
                key = {"kernel": module.NAME, "case": table_case, "config": dataclasses.asdict(config)}
                if journal.has(key) or time.monotonic() > deadline:
                    continue
                with journal.running(key):
                    line = _time(module, case, config)
                print(json.dumps({**key, **line}), flush=True)
                journal.add({**key, **line, **origin})
            times = journal.times(module.NAME, table_case)
            # Half a sweep picks from what happens to come first.
            if times and time.monotonic() <= deadline:
                best = min(times, key=lambda line: line["ms"])
                write_entry(path, kind, table_case, type(module.candidates(case)[0])(**best["config"]))
                print(f"{table_case}: {best['ms']:.4f} ms with {best['config']}", flush=True)


def _in_turn(modules: Sequence[ModuleType], seconds: float) -> Iterator[tuple[ModuleType, float]]:
    """Each with the time after which nothing of it starts: half of what is left, of the last all of it."""
    end = time.monotonic() + seconds
    for i, module in enumerate(modules):
        now = time.monotonic()
        yield module, now + (end - now) / min(2, len(modules) - i)


class Journal:
    """JSON lines of what is done, and beside them what is running."""

    def __init__(self, path: Path) -> None:
        self._path, self._running = path, path.with_suffix(".running")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lines: list[Line] = []
        if path.exists():
            self.lines = [json.loads(line) for line in path.read_text().splitlines()]
        if self._running.exists():
            self.add({**json.loads(self._running.read_text()), "failed": "the process ended while this ran"})
            self._running.unlink()

    def add(self, line: Line) -> None:
        self.lines.append(line)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def has(self, key: Line) -> bool:
        return any(all(line.get(name) == value for name, value in key.items()) for line in self.lines)

    def times(self, kernel: str, case: str) -> list[Line]:
        return [line for line in self.lines if (line["kernel"], line.get("case")) == (kernel, case) and "ms" in line]

    @contextlib.contextmanager
    def running(self, key: Line) -> Iterator[None]:
        self._running.write_text(json.dumps(key))
        try:
            yield
        except Exception as error:
            self.add({**key, "failed": _first_line(error)})
            self._running.unlink()
            raise
        self._running.unlink()


def render(lines: list[Line], modules: Iterable[ModuleType]) -> str:
    """Tables of all lines that did not fail, and a list of those that did."""
    heads = {_heading(line) for line in lines if "device" in line}
    says = (
        "Medians, random data; peers take turns, each at the clock it can hold. The ceiling of 8-bit products is\n"
        "twice the bf16 product's, of 8192 x 8192 matrices. The prologue of attention is timed by its kernels alone."
    )
    sections = ["# Kernels", *sorted(heads), says]
    for module in modules:
        mine = [line for line in lines if line["kernel"] == module.NAME]
        rows = [module.row(line) for line in mine if "failed" not in line]
        failed = [f"- {line.get('name', line)}: {line['failed']}" for line in mine if "failed" in line]
        if mine:
            sections += [f"## {module.NAME}", _table(module.COLUMNS, rows)]
        if failed:
            sections += ["Failed:\n\n" + "\n".join(failed)]
    return "\n\n".join(sections) + "\n"


def _time(module: ModuleType, case: Any, config: Any) -> Line:
    try:
        return {"ms": module.timed(case, config)}
    except Exception as error:
        _require_working_gpu(error)
        return {"failed": _first_line(error)}


def _attempt(module: ModuleType, case: Any, best: Ceilings) -> Line:
    try:
        return module.measure(case, best)
    except Exception as error:
        _require_working_gpu(error)
        return {**dataclasses.asdict(case), "failed": _first_line(error)}


def _require_working_gpu(error: Exception) -> None:
    """A kernel may break the context for all that follows: then end the process, and the next one goes on."""
    try:
        jax.block_until_ready(jax.numpy.zeros(1) + 1)
    except Exception:
        raise RuntimeError(f"the GPU's context is broken: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"


def _matching(module: ModuleType, grep: str, deciding: bool) -> list[Any]:
    """Those that decide first."""
    cases = sorted(module.cases(), key=lambda case: not module.decides(case))
    return [case for case in cases if grep in str(case) and (module.decides(case) or not deciding)]


def _require_gpu() -> None:
    if jax.default_backend() != "gpu":
        raise UserError(f"benchmark: needs a GPU, this is {jax.default_backend()}")


def _heading(origin: Line) -> str:
    versions = f"jax {origin['jax']}, torch {origin['torch']}, commit {origin['commit']}"
    reached = f"copy {origin['copy_tb_per_s']:.2f} TB/s, bf16 product {origin['bf16_tflops']:.0f} TFLOP/s"
    return f"{origin['device']}, {versions}, `{origin['command']}`; {reached}."


def _table(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
