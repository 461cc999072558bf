"""What a device was busy with."""

import collections
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax


def print_kernels(function: Callable[[], Any], count: int) -> None:
    """What the device was busy with, longest first."""
    spent: collections.Counter[str] = collections.Counter()
    calls: collections.Counter[str] = collections.Counter()
    for name, ms in kernel_events(function):
        spent[name] += ms
        calls[name] += 1
    for name, ms in spent.most_common(count):
        print(f"{ms:9.2f} ms {calls[name]:6d} x  {name[:120]}")


def kernel_events(function: Callable[[], Any]) -> Iterator[tuple[str, float]]:
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
