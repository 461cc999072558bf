"""Progress from inside the compiled scan.

The program calls one fixed function, `report`, and whoever listens gets the numbers. Because the function never
changes, neither does the program, and a listener costs no recompilation.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

Listener = Callable[[int, float, float], None]
_listeners: list[Listener] = []
_watchers: list[Callable[[str], None]] = []


def report(step: Any, skipped: Any, bits: Any) -> None:
    """Called on the host after step `step`: fraction of blocks skipped, and mean activation bits of the others."""
    for listener in _listeners:
        listener(int(step), float(skipped), float(bits))


def announce(stage: str) -> None:
    """Called by the pipeline when a stage begins: text, compile, denoise, decode."""
    for watcher in _watchers:
        watcher(stage)


@contextlib.contextmanager
def listening(listener: Listener, watcher: Callable[[str], None] = lambda stage: None) -> Iterator[None]:
    """Pass every report to `listener`, and every stage to `watcher`, while the block runs.

    >>> with listening(lambda step, skipped, bits: print(step, skipped, bits)):
    ...     report(3, 0.25, 6)
    3 0.25 6.0
    """
    _listeners.append(listener)
    _watchers.append(watcher)
    try:
        yield
    finally:
        _listeners.remove(listener)
        _watchers.remove(watcher)


@contextlib.contextmanager
def bar(steps: int) -> Iterator[None]:
    """A terminal bar: the stage, the steps, the running skip rate and mean activation bits."""
    from tqdm import tqdm

    sums = {"ran": 0.0, "bits": 0.0}
    with tqdm(total=steps, unit="step", dynamic_ncols=True) as line:

        def show(step: int, skipped: float, bits: float) -> None:
            sums["ran"] += 1 - skipped
            sums["bits"] += bits * (1 - skipped)
            # Reports of neighbouring steps may arrive out of order, so the bar counts them and ignores the index.
            done = line.n + 1
            width = sums["bits"] / max(sums["ran"], 1e-9)
            line.set_postfix_str(f"skipped {1 - sums['ran'] / done:.0%}, {width:.1f} bits", refresh=False)
            line.update()

        with listening(show, line.set_description):
            yield
