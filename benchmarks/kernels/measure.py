"""Clocks, random data and where a figure comes from."""

import dataclasses
import functools
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from benchmarks.kernel_times import kernel_events
from benchmarks.provenance import provenance as of_program

Run = Callable[[], Any]  # starts the work and returns something to wait for, without waiting

# Kernels launched one by one. XLA captures five calls in a row or more as a CUDA graph, each as a graph of its own, and
# in these no kernel begins before the one in front has ended. It changes the graph of a program whose results or
# temporaries moved since.
NO_GRAPH = {"xla_gpu_enable_command_buffer": ""}


def wait(result: Any) -> None:
    """Until the device is done, whichever framework the result belongs to."""
    if type(result).__module__.startswith("torch"):
        import torch

        torch.cuda.synchronize()
    else:
        jax.block_until_ready(result)


def milliseconds(
    runs: Mapping[str, Run], *, rounds: int = 5, target_ms: float = 30.0, settle_ms: float = 100.0
) -> dict[str, float]:
    """Median time of one call of each, in rounds of as many queued calls as fill `target_ms`.

    A shared machine drifts, so ours and its peers take turns, in another order each round. Each runs for `settle_ms`
    before it is timed: a GPU at its limit of power takes so long to find the clock it can hold, and until then has the
    one of whatever ran before. The same INT8 product took 3.80 ms right after FP8 ones, and 3.26 ms 130 ms later.
    Queued calls keep the host out of the figure.
    """
    once = {name: _about(run, target_ms) for name, run in runs.items()}
    counts = {name: max(1, round(target_ms / ms)) for name, ms in once.items()}

    def settled(name: str) -> float:
        _clock(runs[name], math.ceil(settle_ms / once[name]))
        return _clock(runs[name], counts[name])

    return _medians(runs, rounds, settled)


def busy_milliseconds(runs: Mapping[str, Run], *, rounds: int = 5, calls: int = 20) -> dict[str, float]:
    """Median time of one call's kernels, which is what remains of a program in a larger one; likewise in turn.

    For programs of many small kernels, each of which takes a host 10 to 50 µs to send off, as long as the device is
    busy with it or longer.
    """
    for run in runs.values():
        _clock(run, 1)

    def busy(name: str) -> float:
        return sum(ms for _, ms in kernel_events(functools.partial(_clock, runs[name], calls))) / calls

    return _medians(runs, rounds, busy)


def _medians(runs: Mapping[str, Run], rounds: int, time_one: Callable[[str], float]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    shuffle = random.Random(0)
    for _ in range(rounds):
        for name in shuffle.sample(sorted(runs), len(runs)):
            times[name].append(time_one(name))
    return {name: statistics.median(values) for name, values in times.items()}


WARM_UP, MOST_CALLS = 5, 200
LONG_MS = 1000.0  # enough of a warm-up for programs that take so long


def _about(run: Run, target_ms: float) -> float:
    """The time of a call, by more and more of them, until they fill half the target. The best of two attempts counts.
    At least what lets `MOST_CALLS` fill it: not more are queued.

    Some of a program's first calls take tens of milliseconds, as when XLA makes a CUDA graph of it. Counted by those, a
    round was of three calls, which the host has its share in: 200 µs where 138 was true.
    """
    once, calls = _warm_up(run), 1
    while once * calls <= target_ms / 2 and calls < MOST_CALLS:
        once = min(_clock(run, calls) for _ in range(2))
        calls *= 2
    return max(once, target_ms / MOST_CALLS)


def _warm_up(run: Run) -> float:
    """The time of its best call."""
    times: list[float] = []
    while len(times) < WARM_UP and sum(times) < LONG_MS:
        times.append(_clock(run, 1))
    return min(times)


def _clock(run: Run, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        result = run()
    wait(result)
    return (time.perf_counter() - start) * 1e3 / calls


def attempt(run: Run) -> tuple[Run | None, str]:
    """A peer that cannot run here is left out, with its reason."""
    try:
        wait(run())
    except Exception as error:
        return None, f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    return run, ""


def with_peers(ours: Mapping[str, Run], make: Callable[[], Mapping[str, Run]]) -> tuple[dict[str, Run], dict[str, str]]:
    """Ours and the peers that run here; for the others, why not."""
    runs, reasons = dict(ours), {}
    try:
        peers = make()
    except Exception as error:
        return runs, {"peers": f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"}
    for name, peer in peers.items():
        run, reason = attempt(peer)
        if run is None:
            reasons[name] = reason
        else:
            runs[name] = run
    return runs, reasons


def relative_error(actual: Any, expected: Any) -> float:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """What this GPU does at best, measured in the same run."""

    copy: float  # bytes per second, read and written
    bf16: float  # FLOP per second; of 8-bit products it is twice that


def bandwidth(ms: Mapping[str, float], moved: float, ceilings: Ceilings) -> dict[str, Any]:
    """What the lines of kernels that a copy is the yardstick of have in common; `moved` is in bytes."""
    rate = moved / (ms["ours"] * 1e-3)
    return {
        "ms": {name: round(value, 4) for name, value in ms.items()},
        "tb_per_s": round(rate * 1e-12, 3),
        "of_copy": round(rate / ceilings.copy, 3),
        "ratio": {name: round(value / ms["ours"], 3) for name, value in ms.items() if name != "ours"},
    }


BANDWIDTH_COLUMNS = ("ms", "TB/s", "of copy bandwidth", "vs XLA")


def bandwidth_cells(line: Mapping[str, Any]) -> tuple[str, ...]:
    """What `bandwidth` found, for a table."""
    ratio = line["ratio"].get("XLA")
    return (
        f"{line['ms']['ours']:.3f}",
        f"{line['tb_per_s']:.2f}",
        f"{100 * line['of_copy']:.0f} %",
        f"{ratio:.2f}x" if ratio else "-",
    )


def ceilings() -> Ceilings:
    """Of a device-to-device copy of 2 GiB, and of torch's product of 8192 x 8192 matrices."""
    import torch

    n = 8192
    x, y = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return Ceilings(_copy_bandwidth(), 2 * n**3 / (milliseconds({"product": lambda: x @ y})["product"] * 1e-3))


def _copy_bandwidth() -> float:
    import torch

    a = torch.randn(1 << 30, device="cuda", dtype=torch.bfloat16)
    b = torch.empty_like(a)
    return 2 * a.nbytes / (milliseconds({"copy": lambda: b.copy_(a)})["copy"] * 1e-3)


def provenance() -> dict[str, str]:
    import torch

    device = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    return of_program("scripts/benchmark.py") | device
