"""What a device was busy with."""

import collections
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


def print_kernels(function: Callable[[], Any], count: int) -> None:
    """What the device was busy with, longest first."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            function()
        (file,) = Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(file))
        spent: collections.Counter[str] = collections.Counter()
        calls: collections.Counter[str] = collections.Counter()
        for plane in profile.planes:
            if not plane.name.startswith("/device:"):
                continue
            for line in plane.lines:
                for event in line.events:
                    spent[f"{line.name}: {event.name}"] += event.duration_ns
                    calls[f"{line.name}: {event.name}"] += 1
    for name, nanoseconds in spent.most_common(count):
        print(f"{nanoseconds / 1e6:9.2f} ms {calls[name]:6d} x  {name[:120]}")
