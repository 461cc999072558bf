"""The noise levels and timesteps of a run, from a step count and a shift.

Sigmas are worked out in float64 and rounded to float32, as both references do: a solver computes its coefficients
from the rounded values. The references differ in their grids, so a schedule name means "what that reference does
with this solver":

| name | solver | grid before the shift | timestep |
|---|---|---|---|
| diffusers | UniPC | n + 1 points from 1 to 0.001 without the last; the first lowered by 1e-6 afterwards | ⌊1000 σ⌋ |
| diffusers | Euler | n points between the ends of the shifted training grid, which are so shifted twice | 1000 σ |
| wan | both | n + 1 points from 0.999 to 0 without the last | ⌊1000 σ⌋ |
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

from sixbit_jax.errors import UserError, nearest

SCHEDULES = ("diffusers", "wan")

_TRAIN_STEPS = 1000
_WAN_SIGMA_MAX = float(np.float32(0.999))  # the original repository keeps its training grid in float32
_BELOW_ONE = 1e-6  # keeps log(1 - sigma) finite at the first step


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Noise levels at the ends of the steps (the last is 0) and what the model is told at the start of each."""

    timesteps: Float[np.ndarray, " i"]
    sigmas: Float[np.ndarray, " i+1"]


ScheduleRule = Callable[[int, float], Schedule]


def make_schedule(rules: Mapping[str, ScheduleRule], name: str, num_steps: int, shift: float | int) -> Schedule:
    """The schedule a solver knows as `name`, for checked arguments."""
    if name not in rules:
        raise UserError(f'--schedule: unknown schedule "{name}"; {nearest(name, rules)}')
    if num_steps < 1:
        raise UserError(f"--num-inference-steps {num_steps}: needs at least 1")
    if not (math.isfinite(shift) and shift > 0):
        raise UserError(f"--flow-shift {shift}: needs a positive number (Wan uses 3 to 12)")
    schedule = rules[name](num_steps, float(shift))
    if not np.all(np.diff(schedule.sigmas) < 0):
        raise UserError(f"--flow-shift {shift}: too far from 1 for {num_steps} steps (noise levels coincide)")
    return schedule


def diffusers_unipc(num_steps: int, shift: float) -> Schedule:
    """The grid of diffusers' UniPC with flow sigmas."""
    sigmas = shift_sigmas(np.linspace(1, 1 / _TRAIN_STEPS, num_steps + 1)[:-1], shift)
    sigmas[0] -= _BELOW_ONE
    return _with_whole_timesteps(sigmas)


def diffusers_euler(num_steps: int, shift: float) -> Schedule:
    """The grid of diffusers' flow-matching Euler with a fixed shift."""
    ends = np.array([_TRAIN_STEPS, 1], np.float32) / np.float32(_TRAIN_STEPS)
    first, last = shift_sigmas(ends, np.float32(shift)).astype(np.float64)
    grid = np.linspace(first * _TRAIN_STEPS, last * _TRAIN_STEPS, num_steps) / _TRAIN_STEPS
    sigmas = shift_sigmas(grid, shift).astype(np.float32)
    return Schedule(sigmas * np.float32(_TRAIN_STEPS), np.append(sigmas, np.float32(0)))


def wan(num_steps: int, shift: float) -> Schedule:
    """The grid of the original Wan repository."""
    return _with_whole_timesteps(shift_sigmas(np.linspace(_WAN_SIGMA_MAX, 0, num_steps + 1)[:-1], shift))


def shift_sigmas(sigmas: Float[np.ndarray, " i"], shift: float | np.float32) -> Float[np.ndarray, " i"]:
    """Spend more of the steps at high noise (shift > 1); 0 and 1 stay where they are.

    >>> import numpy as np
    >>> shift_sigmas(np.array([1.0, 0.5, 0.0]), 3.0)
    array([1.  , 0.75, 0.  ])
    """
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def _with_whole_timesteps(sigmas: Float[np.ndarray, " i"]) -> Schedule:
    timesteps = np.trunc(sigmas * _TRAIN_STEPS)
    return Schedule(timesteps.astype(np.float32), np.append(sigmas, 0.0).astype(np.float32))
