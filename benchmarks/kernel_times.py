"""What a device was busy with."""

import collections
import functools
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax


def print_kernels(function: Callable[[], Any], count: int) -> None:
    """What the device was busy with, longest first."""
    spent: collections.Counter[str] = collections.Counter()
    calls: collections.Counter[str] = collections.Counter()
    for name, ms in _events(function):
        spent[name] += ms
        calls[name] += 1
    for name, ms in spent.most_common(count):
        print(f"{ms:9.2f} ms {calls[name]:6d} x  {name[:120]}")


def busy_milliseconds(runs: Mapping[str, Callable[[], Any]], *, rounds: int = 5, calls: int = 20) -> dict[str, float]:
    """Median time of one call's kernels, in rounds in which all take turns: what remains of a program in a larger one.

    For programs of many small kernels, each of which takes a host 10 to 50 µs to send off, as long as the device is
    busy with it or longer.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    shuffle = random.Random(0)
    for run in runs.values():
        _call(run, 1)
    for _ in range(rounds):
        for name in shuffle.sample(sorted(runs), len(runs)):
            events = _events(functools.partial(_call, runs[name], calls))
            times[name].append(sum(ms for _, ms in events) / calls)
    return {name: statistics.median(values) for name, values in times.items()}


def _call(run: Callable[[], Any], count: int) -> None:
    for _ in range(count):
        result = run()
    jax.block_until_ready(result)


def _events(function: Callable[[], Any]) -> Iterator[tuple[str, float]]:
    """Of every kernel and copy its line and name, and its milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            function()
        (file,) = Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(file))
        for plane in profile.planes:
            if plane.name.startswith("/device:"):
                yield from (
                    (f"{line.name}: {e.name}", e.duration_ns / 1e6) for line in plane.lines for e in line.events
                )
