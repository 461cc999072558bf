"""A pytest plugin: a line of JSON at the start and at the end of every test, written at once: verdict, figures, why.

A run that is cut off then still tells what it found. `$VERDICTS` names the file; processes may share it.
"""

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

VARIABLE = "VERDICTS"
LONGEST = 400  # characters of a message


def message_of(error: BaseException) -> str:
    """The type and what it says in one line: an assertion's numbers come first, other errors may end with the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = f"{type(error).__name__}: {'; '.join(lines)}"
    return said if len(said) <= LONGEST else f"{said[: LONGEST - 105]} ... {said[-100:]}"


def pytest_runtest_logstart(nodeid: str) -> None:
    _write({"test": nodeid, "outcome": "STARTED"})


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if report.when != "call" and report.passed:
        return
    line = {"test": item.nodeid, "outcome": _verdict(report), "seconds": round(call.duration, 2)}
    if item.user_properties:  # what a test measured, also of one that passed
        line["measured"] = dict(item.user_properties)
    if report.failed:
        line["message"] = message_of(call.excinfo.value)
        if reporter := item.config.pluginmanager.get_plugin("terminalreporter"):
            reporter.write_line(f"\n{line['message']}")
    _write(line)


def _verdict(report: Any) -> str:
    return "ERROR" if report.failed and report.when != "call" else str(report.outcome).upper()


def _write(line: dict[str, Any]) -> None:
    if path := os.environ.get(VARIABLE):
        with open(path, "a") as file:
            file.write(json.dumps({**line, "at": round(time.time(), 1)}) + "\n")
