"""The fit against numpy's own, what R² says of noise, and the threshold that gives the wanted width."""

import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.errors import UserError
from sixbit_jax.predictor import choose_threshold, fit, mean_bits

PROMPTS, STEPS, BRANCHES, LAYERS, GROUPS = 3, 12, 2, 4, 3


def world(rng: np.random.Generator, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Relative changes, and errors that depend on those of the step before by a line of each layer and group."""
    gamma = rng.uniform(0.1, 0.8, (PROMPTS, STEPS, BRANCHES, LAYERS))
    slope, offset = rng.uniform(-0.2, 0.5, (LAYERS, GROUPS)), rng.uniform(0.1, 0.3, (LAYERS, GROUPS))
    error = np.roll(gamma, 1, axis=1)[..., None] * slope + offset
    return gamma, error + noise * rng.normal(size=error.shape)


def test_every_line_is_numpys(rng: np.random.Generator):
    gamma, error = world(rng, 0.05)
    found = fit(gamma, error)
    for layer in range(LAYERS):
        for group in range(GROUPS):
            x, y = gamma[:, :-1, :, layer].ravel(), error[:, 1:, :, layer, group].ravel()
            slope, offset = np.polyfit(x, y, 1)
            np.testing.assert_allclose(
                [found.slope[layer, group], found.offset[layer, group]], [slope, offset], rtol=1e-9
            )
            np.testing.assert_allclose(found.r2[layer, group], np.corrcoef(x, y)[0, 1] ** 2, rtol=1e-9)


def test_r2_tells_a_law_from_noise(rng: np.random.Generator):
    """Of pure noise a line explains about one part in the number of samples, 66 here."""
    assert fit(*world(rng, 0.0)).r2.min() > 1 - 1e-9
    gamma, _ = world(rng, 0.0)
    assert fit(gamma, rng.normal(size=(*gamma.shape, GROUPS))).r2.max() < 0.25


def test_one_line_for_all_layers_explains_less(rng: np.random.Generator):
    found = fit(*world(rng, 0.01))
    assert (found.pooled_r2 < found.r2.min(0)).all()


@pytest.mark.parametrize("target", [4.5, 6.0, 7.5])
def test_the_threshold_gives_the_width(rng: np.random.Generator, target: float):
    """A quantile of n values is off by less than one of them: 4 bits in 792."""
    gamma, error = world(rng, 0.05)
    found = fit(gamma, error)
    policy = found.policy(choose_threshold(found, gamma, target))
    assert abs(mean_bits(policy, found, gamma) - target) < 4 / 700


def test_the_policy_predicts_as_the_fit(rng: np.random.Generator):
    gamma, error = world(rng, 0.05)
    found = fit(gamma, error)
    seen = gamma[0, 0, 0]
    np.testing.assert_allclose(
        found.policy(0.2).predict(jnp.asarray(seen, jnp.float32)), found.predict(seen), rtol=1e-5
    )


def test_what_cannot_be_is_refused(rng: np.random.Generator):
    gamma, error = world(rng, 0.05)
    with pytest.raises(UserError, match="at least 3 steps"):
        fit(gamma[:, :2], error[:, :2])
    for target in (3.9, 4.1, 8.1):
        with pytest.raises(UserError, match="--target-bits"):
            choose_threshold(fit(gamma, error), gamma, target)
