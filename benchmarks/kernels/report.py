"""Run the cases of some kernels; write JSON lines and a Markdown table, or a table of tuned configurations."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from benchmarks.kernels.measure import copy_bandwidth, provenance
from pallas_kernels.tables import write_entry
from sixbit_jax.errors import UserError


def measure(modules: Iterable[ModuleType], grep: str, output: Path) -> None:
    """Every matching case; a case that fails is recorded with its error, and the rest go on."""
    _require_gpu()
    bandwidth, origin = copy_bandwidth(), provenance()
    sections = [f"# Kernels\n\n{_heading(origin)}, copy {bandwidth * 1e-12:.2f} TB/s.\nMedians of interleaved rounds."]
    for module in modules:
        rows = []
        for case in _matching(module, grep):
            result = _attempt(module, case, bandwidth)
            print(json.dumps(result), flush=True)
            with output.open("a") as file:
                file.write(
                    json.dumps({"kernel": module.NAME, **result, "copy_tb_per_s": bandwidth * 1e-12, **origin}) + "\n"
                )
            if "failed" not in result:
                rows.append(module.row(result))
        sections.append(f"## {module.NAME}\n\n{_table(module.COLUMNS, rows)}")
    output.with_suffix(".md").write_text("\n\n".join(sections) + "\n")


def tune(modules: Iterable[ModuleType], grep: str) -> None:
    """The fastest candidate of every matching case, into the kernel's table. A wrong result disqualifies."""
    _require_gpu()
    kind = jax.devices()[0].device_kind
    for module in modules:
        for case in _matching(module, grep):
            times = _times(module, case)
            if times:
                best = min(times, key=times.__getitem__)
                path, key = module.table_key(case)
                write_entry(path, kind, key, best)
                print(f"{key}: {times[best]:.4f} ms with {best}", flush=True)


def _times(module: ModuleType, case: Any) -> dict[Any, float]:
    times = {}
    for config in module.candidates(case):
        try:
            times[config] = module.timed(case, config)
        except Exception as error:
            print(f"  {config}: {type(error).__name__}: {str(error).splitlines()[0][:160]}", flush=True)
    return times


def _attempt(module: ModuleType, case: Any, bandwidth: float) -> dict[str, Any]:
    try:
        return module.measure(case, bandwidth)
    except Exception as error:
        return {**dataclasses.asdict(case), "failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}


def _matching(module: ModuleType, grep: str) -> list[Any]:
    return [case for case in module.cases() if grep in str(case)]


def _require_gpu() -> None:
    if jax.default_backend() != "gpu":
        raise UserError(f"benchmark: needs a GPU, this is {jax.default_backend()}")


def _heading(origin: dict[str, str]) -> str:
    versions = f"jax {origin['jax']}, torch {origin['torch']}, commit {origin['commit']}"
    return f"{origin['device']}, {versions}, `{origin['command']}`"


def _table(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
