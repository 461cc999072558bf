"""The loop of both stages: chunks of compiled steps, a log, saves, and a budget of steps or of seconds.

All randomness of step n comes from (seed, n), so a resumed run repeats the uninterrupted one.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sixbit_jax.errors import UserError
from sixbit_jax.tiny.checkpointing import load_facts, load_tree, save_tree
from sixbit_jax.tiny.journal import Journal
from sixbit_jax.tiny.optimizer import UNDECIDED, TrainState

# (state, data, number of steps) -> (state, metrics): one optimizer step, or a chunk of them.
Step: TypeAlias = Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]

_TIMED_CHUNKS = 2  # behind the one that compiles


@dataclasses.dataclass(frozen=True)
class Budget:
    """`steps`, or as many as fit into `seconds` since `started` with `reserve` seconds left over at the end.

    With both, the run has so many steps and stops where its seconds are over; resumed, it goes on from there.
    """

    steps: int | None
    seconds: float | None
    started: float
    reserve: float
    chunk: int

    def __post_init__(self) -> None:
        if self.steps is None and self.seconds is None:
            raise UserError("--steps: give --steps, --seconds or both")
        if self.steps is not None and self.steps % self.chunk:
            nearest = max(1, round(self.steps / self.chunk)) * self.chunk
            raise UserError(f"--steps {self.steps}: not a multiple of --chunk {self.chunk}; the nearest is {nearest}")

    def length(self, done: int, decided: int | None) -> int | None:
        """Steps of the whole run, of which `done` are over and on which an earlier command may have `decided`.

        More than it decided lengthen the cosine of the rate, which so rises once more: a restart.
        """
        if self.steps is None:
            return decided
        if self.steps < done:
            raise UserError(f"--steps {self.steps}: the run to resume has done {done} already")
        return self.steps

    def choose_steps(self, done: int, seconds_per_chunk: float) -> int:
        """How many steps the whole run will have, when `done` are over and a chunk takes so long."""
        return done + max(1, int(self._seconds_left() / seconds_per_chunk)) * self.chunk

    def is_over(self) -> bool:
        """Whether the seconds are, of a run whose steps are given."""
        return self.steps is not None and self.seconds is not None and self._seconds_left() < 0

    def _seconds_left(self) -> float:
        assert self.seconds is not None
        return self.started + self.seconds - self.reserve - time.perf_counter()


@dataclasses.dataclass(frozen=True)
class Stage:
    """A training stage in its folder. `settings` is everything that its result depends on but the number of steps."""

    name: str
    work: Path
    settings: dict[str, Any]
    save_seconds: float

    @property
    def state_file(self) -> Path:
        return self.work / f"{self.name}-state.npz"

    def restore(self, fresh: TrainState) -> tuple[TrainState, int | None]:
        """The saved state and the number of steps decided on."""
        facts = load_facts(self.state_file)
        for flag, value in self.settings.items():
            if facts["settings"].get(flag) != value:
                then = facts["settings"].get(flag)
                raise UserError(f"--{flag} {value}: the run in {self.work} has {then}; resume with that")
        return load_tree(self.state_file, fresh), facts["total"]

    def save(self, state: TrainState, total: int | None) -> None:
        save_tree(self.state_file, state, {"settings": self.settings, "total": total})


def chunk_of(step: Step, length: int) -> Step:
    """So many steps as one; metrics come stacked."""

    def run(state: TrainState, data: Any, total: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        return lax.scan(lambda state, _: step(state, data, total), state, None, length=length)

    return run


def fit(
    stage: Stage,
    run_chunk: Step,
    state: TrainState,
    data: Any,
    budget: Budget,
    total: int | None,
    on_save: Callable[[TrainState], None],
) -> TrainState:
    """Train until the budget is spent. `run_chunk` is compiled and takes the state over: `chunk_of` budget.chunk steps.

    `total` is that of the resumed run; `on_save` sees the state at each save.
    """
    done = int(state.step)
    total = budget.length(done, total)
    journal = Journal(stage.work / f"{stage.name}-log.jsonl", done)
    durations: list[float] = []
    saved = time.perf_counter()
    while (total is None or done < total) and not budget.is_over():
        begun = time.perf_counter()
        state, metrics = run_chunk(state, data, jnp.int32(UNDECIDED if total is None else total))
        numbers = {name: float(np.mean(values)) for name, values in metrics.items()}
        done = int(state.step)
        durations.append(time.perf_counter() - begun)
        _report(stage, journal, budget, done, total, numbers, durations[-1])
        if total is None and len(durations) > _TIMED_CHUNKS:
            total = budget.choose_steps(done, float(np.mean(durations[1:])))
            print(
                f"{stage.name}: {total} steps fit into {budget.seconds:.0f} s (repeat with --steps {total})", flush=True
            )
        if not np.isfinite(numbers["loss"]):
            raise UserError(f"{stage.name}: the loss is no longer finite at step {done}; lower --rate")
        if time.perf_counter() - saved > stage.save_seconds:
            stage.save(state, total)
            journal.draw("loss")
            on_save(state)
            saved = time.perf_counter()
    stage.save(state, total)
    journal.draw("loss")
    if total is not None and done < total:
        print(f"{stage.name}: stopped after {done} of {total} steps; go on with --resume", flush=True)
    return state


def _report(
    stage: Stage,
    journal: Journal,
    budget: Budget,
    done: int,
    total: int | None,
    numbers: dict[str, float],
    seconds: float,
) -> None:
    """A line for people and one for the log. The first chunk's rate includes compiling."""
    since = time.perf_counter() - budget.started
    rate = budget.chunk / seconds
    journal.add({"step": done, "seconds": round(since, 2), "steps_per_second": round(rate, 3)} | numbers)
    shown = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
    print(f"{stage.name} {done}/{total or '?'}  {shown}  {rate:.2f} steps/s  {since:.0f} s", flush=True)
