"""Which tau skips as many blocks as wanted: predicted from one run, checked on real ones.

    run at tau 0 --changes of every block and step--> a guess, by letting the policy decide over them again
    run at that guess --what it really skipped--> a better guess, until the rate is close enough

A skipped block's next change is one since a longer time ago, so real runs skip less than the replay says.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from sixbit_jax.errors import UserError
from sixbit_jax.policies import PolicySpec, TemporalDeltaCache

ROUNDS = 4
CLOSE = 0.01
_HALVINGS = 16

Skipped = Bool[np.ndarray, "i e l"]
Changes = Float[np.ndarray, "i e l"]


@dataclasses.dataclass(frozen=True)
class Found:
    tau: float
    skipped: Skipped  # of the run at that tau

    @property
    def rate(self) -> float:
        return float(self.skipped.mean())

    @property
    def order(self) -> tuple[int, ...]:
        """The layers that skip most first."""
        return tuple(int(layer) for layer in np.argsort(-self.skipped.sum((0, 1)), kind="stable"))


def find_tau(
    policy: TemporalDeltaCache,
    spec: PolicySpec,
    target: float,
    run: Callable[[TemporalDeltaCache], tuple[Changes, Skipped]],
) -> Found:
    """The tau whose run came closest to skipping `target` of all block executions."""
    changes, _ = run(dataclasses.replace(policy, tau=0.0))
    most = replay(dataclasses.replace(policy, tau=float("inf")), spec, changes).mean()
    if not 0 < target <= most:
        raise UserError(f"--target-skip-rate {target}: has to be above 0 and at most {most:.2f} at {spec.steps} steps")
    guess = tau = _tau_for(policy, spec, changes, target)
    tried: list[Found] = []
    for _ in range(ROUNDS):
        found = Found(tau, run(dataclasses.replace(policy, tau=tau))[1])
        tried.append(found)
        if abs(found.rate - target) <= CLOSE:
            break
        # As if all changes had been larger by one factor: that between this tau and the one with this rate in a replay.
        tau = guess * min(4.0, tau / max(_tau_for(policy, spec, changes, found.rate), guess / 16))
    return min(tried, key=lambda each: abs(each.rate - target))


def replay(policy: TemporalDeltaCache, spec: PolicySpec, changes: Changes) -> Skipped:
    """What `policy` would decide if skipping did not alter the changes: its rule once more, in numpy.

    A search asks a hundred times; the policy itself would be compiled for every tau.
    """
    change, error, skips = np.zeros(changes.shape[1:]), np.zeros(changes.shape[1:]), np.zeros(changes.shape[1:], int)
    skipped = np.zeros(changes.shape, bool)
    runs = changes.shape[1] // spec.branches
    for step in range(max(policy.warmup, 2), len(changes) - policy.cooldown):
        change = np.where(skipped[step - 1], change, changes[step - 1])
        wanted = (error + change < float(policy.tau or 0.0)) & (skips < policy.max_skips) & policy.cached(spec)
        skip = np.concatenate([policy.agree(spec, jnp.asarray(each)) for each in np.split(wanted, runs)])
        error, skips = np.where(skip, error + change, 0.0), np.where(skip, skips + 1, 0)
        skipped[step] = skip
    return skipped


def _tau_for(policy: TemporalDeltaCache, spec: PolicySpec, changes: Changes, aim: float) -> float:
    low, high = 0.0, float(changes[1:].max() * (policy.max_skips + 1))  # the first has no delta before it
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        rate = replay(dataclasses.replace(policy, tau=middle), spec, changes).mean()
        low, high = (middle, high) if rate < aim else (low, middle)
    return high
