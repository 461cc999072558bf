"""Times of interleaved runs, by a clock that the runs themselves move on."""

import pytest

from benchmarks.kernels import measure


class Clock:
    """Runs that take so long, in the order they were started in."""

    def __init__(self, monkeypatch) -> None:
        self.now, self.started = 0.0, []
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(measure, "wait", lambda result: self.pass_time(0.05))

    def pass_time(self, ms: float) -> None:
        self.now += ms * 1e-3

    def run(self, name: str, ms: float, slow: int = 0, slow_ms: float = 0.0):
        """`slow` calls, the first ones, take `slow_ms`."""
        calls = iter(range(10**9))

        def call():
            self.started.append(name)
            self.pass_time(slow_ms if next(calls) < slow else ms)

        return call


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_a_time_is_of_one_call_and_waiting_is_shared_by_many(clock):
    found = measure.milliseconds({"short": clock.run("short", 0.5), "long": clock.run("long", 100.0)})
    assert found["short"] == pytest.approx(0.5, rel=0.01)
    assert found["long"] == pytest.approx(100.05)


def test_slow_first_calls_do_not_make_short_rounds(clock):
    """By one call a round, as the first ones suggest, it would be 0.6 ms."""
    found = measure.milliseconds({"ours": clock.run("ours", 0.55, slow=4, slow_ms=20.0)})
    assert found["ours"] == pytest.approx(0.55, rel=0.01)


def test_each_is_timed_once_it_has_run_for_a_while_in_another_order_each_round(clock):
    runs = {name: clock.run(name, 10.0) for name in ("a", "b", "c")}
    measure.milliseconds(runs, rounds=4, target_ms=30.0, settle_ms=100.0)
    last = clock.started[-4 * 3 * 13 :]  # ten calls before three timed ones
    turns = [last[i : i + 13] for i in range(0, len(last), 13)]
    assert all(len(set(turn)) == 1 for turn in turns)
    rounds = ["".join(turn[0] for turn in turns[i : i + 3]) for i in range(0, 12, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds) and len(set(rounds)) > 1


def test_a_program_of_seconds_is_not_run_more_often_than_it_is_timed(clock):
    """Once to warm up, and twice a round: a forward of 14B takes three seconds."""
    measure.milliseconds({"forward": clock.run("forward", 2800.0)}, rounds=3)
    assert len(clock.started) == 1 + 2 * 3


def test_busy_time_is_of_a_calls_kernels(monkeypatch):
    """Of three calls a round; in one round they take ten times as long."""
    profiles = iter([6.0, 60.0, 3.0, 6.0, 6.0, 3.0])
    started = []

    def events(function):
        function()
        spent = next(profiles)
        return [("Stream: a", spent / 2), ("Stream: b", spent / 2)]

    monkeypatch.setattr(measure, "kernel_events", events)
    found = measure.busy_milliseconds({"ours": lambda: started.append(1)}, rounds=6, calls=3)
    assert found == {"ours": 2.0} and len(started) == 1 + 6 * 3
