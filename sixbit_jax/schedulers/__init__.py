"""Solvers of the flow ODE by name: pure step functions with explicit state."""

from sixbit_jax.errors import UserError, nearest
from sixbit_jax.schedulers.base import Scheduler, StepPlan
from sixbit_jax.schedulers.flow_euler import FlowEuler
from sixbit_jax.schedulers.sigmas import SCHEDULES
from sixbit_jax.schedulers.unipc import UniPC

SOLVERS: dict[str, Scheduler] = {"unipc": UniPC(), "euler": FlowEuler()}


def get(name: str) -> Scheduler:
    """The solver a user named.

    >>> get("euler")
    FlowEuler()
    """
    if name not in SOLVERS:
        raise UserError(f'--solver: unknown solver "{name}"; {nearest(name, SOLVERS)}')
    return SOLVERS[name]


__all__ = ["SCHEDULES", "SOLVERS", "FlowEuler", "Scheduler", "StepPlan", "UniPC", "get"]
