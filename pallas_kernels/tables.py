"""Tuned configurations: one JSON an op, keyed by device kind and case, written by `scripts/benchmark.py tune`."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, TypeVar

Config = TypeVar("Config")


@functools.cache
def read_table(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    return json.loads(path.read_text()) if path.exists() else {}


def lookup(path: Path, kind: str, case: str, config_type: type[Config]) -> Config | None:
    """The tuned configuration of a case on a device kind, or `None`."""
    fields = read_table(path).get(kind, {}).get(case)
    return None if fields is None else config_type(**fields)


def write_entry(path: Path, kind: str, case: str, config: Any) -> None:
    """Add or replace one case. Keys are sorted so that a table's history reads well."""
    table = dict(read_table(path))
    table[kind] = {**table.get(kind, {}), case: dataclasses.asdict(config)}
    path.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    read_table.cache_clear()
