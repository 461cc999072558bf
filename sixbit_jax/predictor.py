"""From what the dense model did to when four bits will do: the predictor of 6Bit-Diffusion, fitted and checked.

    gamma (n, i, e, l), error (n, i, e, l, g) of n prompts --fit--> Fit --choose_threshold--> PredictedPrecision

The error of a linear group at a step is predicted from the relative change of its block at the step before. `r2` says
how much of the error's variance that explains: the paper's central claim, and the first thing to look at.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from sixbit_jax.errors import UserError
from sixbit_jax.policies import PredictedPrecision

_LEAST_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Fit:
    """error ≈ slope × gamma + offset, per layer and group. `pooled_r2`: of one line a group for all layers."""

    slope: Float[np.ndarray, "l g"]
    offset: Float[np.ndarray, "l g"]
    r2: Float[np.ndarray, "l g"]
    pooled_r2: Float[np.ndarray, " g"]

    def predict(self, gamma: Float[np.ndarray, "... l"]) -> Float[np.ndarray, "... l g"]:
        return gamma[..., None] * self.slope + self.offset

    def scaled(self, factor: Float[np.ndarray, "l g"]) -> "Fit":
        """A predictor of `factor` times as much; how much it explains stays."""
        return dataclasses.replace(self, slope=self.slope * factor, offset=self.offset * factor)

    def policy(self, error_threshold: float, purify: str = "after reuse") -> PredictedPrecision:
        table = lambda values: tuple(tuple(float(value) for value in row) for row in values)
        return PredictedPrecision(table(self.slope), table(self.offset), error_threshold, purify)


def fit(gamma: Float[np.ndarray, "n i e l"], error: Float[np.ndarray, "n i e l g"]) -> Fit:
    """Least squares over prompts, steps and branches; the first step has no step before it.

    >>> gamma = np.linspace(0.1, 1, 24).reshape(2, 6, 2, 1)
    >>> late = np.roll(gamma, 1, axis=1)
    >>> found = fit(gamma, (0.3 * late + 0.1)[..., None])
    >>> found.slope.round(3).tolist(), found.offset.round(3).tolist(), found.r2.round(3).tolist()
    ([[0.3]], [[0.1]], [[1.0]])
    """
    if gamma.shape[1] < _LEAST_STEPS:
        raise UserError(f"calibration needs at least {_LEAST_STEPS} steps, not {gamma.shape[1]}")
    layers, groups = error.shape[-2:]
    before = gamma[:, :-1].reshape(-1, layers).astype(np.float64)
    after = error[:, 1:].reshape(-1, layers, groups).astype(np.float64)
    slope, offset, r2 = _least_squares(before[..., None], after)
    everything = np.broadcast_to(before[..., None], after.shape).reshape(-1, groups)
    pooled_r2 = _least_squares(everything, after.reshape(-1, groups))[2]
    return Fit(slope, offset, r2, pooled_r2)


def choose_threshold(fitted: Fit, gamma: Float[np.ndarray, "n i e l"], target_bits: float) -> float:
    """The error threshold at which activations are `target_bits` wide on average, every group counting the same.

    Between 4 and 8: as many of the predicted errors lie above it as have to run in eight bits, next to the first step,
    which always does.
    """
    steps = gamma.shape[1]
    least = 4 + 4 / steps  # the first step alone
    if not least <= target_bits <= 8:
        raise UserError(f"--target-bits {target_bits}: has to be between {least:.2f} and 8 at {steps} steps")
    high_share = (target_bits - 4) / 4
    share = (high_share * steps - 1) / (steps - 1)  # of the steps behind the first
    return float(np.quantile(fitted.predict(gamma[:, :-1]), 1 - share))


def mean_bits(policy: PredictedPrecision, fitted: Fit, gamma: Float[np.ndarray, "n i e l"]) -> float:
    """The width that `policy` would have had on these runs, if it did not change them."""
    high = fitted.predict(gamma[:, :-1]) > policy.error_threshold
    first = np.ones_like(fitted.predict(gamma[:, :1]), bool)
    return float(np.where(np.concatenate([first, high], axis=1), policy.high.bits, policy.low.bits).mean())


def _least_squares(
    x: Float[np.ndarray, "m ..."], y: Float[np.ndarray, "m ..."]
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Slope, offset and R² of a line over the first axis. A constant x explains nothing."""
    x_mean, y_mean = x.mean(0), y.mean(0)
    variance = ((x - x_mean) ** 2).mean(0)
    covariance = ((x - x_mean) * (y - y_mean)).mean(0)
    slope = np.where(variance > 0, covariance / np.where(variance > 0, variance, 1.0), 0.0)
    offset = y_mean - slope * x_mean
    spread = ((y - y_mean) ** 2).mean(0)
    left = ((y - slope * x - offset) ** 2).mean(0)
    return slope, offset, np.where(spread > 0, 1 - left / np.where(spread > 0, spread, 1.0), 0.0)
