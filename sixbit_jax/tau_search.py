"""Which tau skips as many blocks as wanted: predicted from one run, checked on real ones.

    run at tau 0 --changes of every block and step--> a guess, by letting the policy decide over them again
    run at that guess --what it really skipped--> a better guess, until the rate is close enough

A skipped block's next change is one since a longer time ago, so real runs skip less than the replay says.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from sixbit_jax.errors import UserError
from sixbit_jax.policies import PolicySpec, TemporalDeltaCache

_HALVINGS = 16
_FACTOR = 1.5  # tau moves by, at most

Skipped = Bool[np.ndarray, "i e l"]
Changes = Float[np.ndarray, "i e l"]


class TauSearch:
    """`changes` are those of a run at tau 0; `tau` is that of the next run, at first a guess.

    A run that skipped another share than wanted moves tau as far as it takes in a replay, around the share that is
    wanted, since shares move by whole steps; and stays between what skipped too little and too much.
    """

    def __init__(self, policy: TemporalDeltaCache, spec: PolicySpec, changes: Changes, target: float):
        most = replay(dataclasses.replace(policy, tau=float("inf")), spec, changes).mean()
        if not 0 < target <= most:
            raise UserError(
                f"--target-skip-rate {target}: has to be above 0 and at most {most:.2f} at {spec.steps} steps"
            )
        self._policy, self._spec, self._changes, self._target = policy, spec, changes, target
        self.tau = self._replayed(target)
        low, high = target / 2, min(most, 1.5 * target)
        self._slope = float(np.log(self._replayed(high) / self._replayed(low)) / (high - low))

        self._least, self._most = 0.0, float("inf")

    def tell(self, rate: float) -> None:
        """The run at `tau` skipped that share."""
        self._least, self._most = (self.tau, self._most) if rate < self._target else (self._least, self.tau)
        self.tau *= min(_FACTOR, max(1 / _FACTOR, float(np.exp(self._slope * (self._target - rate)))))
        if not self._least < self.tau < self._most:
            self.tau = (self._least * self._most) ** 0.5

    def forget(self) -> None:
        """Something else has changed: what skipped too much may now skip too little."""
        self._least, self._most = 0.0, float("inf")

    def _replayed(self, aim: float) -> float:
        """The tau at which a replay skips that share."""
        low, high = 0.0, float(self._changes[1:].max() * (self._policy.max_skips + 1))  # the first has no delta before
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            rate = replay(dataclasses.replace(self._policy, tau=middle), self._spec, self._changes).mean()
            low, high = (middle, high) if rate < aim else (low, middle)
        return high


def order(skipped: Skipped) -> tuple[int, ...]:
    """The layers that skip most first."""
    return tuple(int(layer) for layer in np.argsort(-skipped.sum((0, 1)), kind="stable"))


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
