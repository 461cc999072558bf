"""The budget of a training run, and the optimizer of its matrices."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.errors import UserError
from sixbit_jax.tiny.muon import orthogonalize
from sixbit_jax.tiny.optimizer import OptimizerConfig, advance, start
from sixbit_jax.tiny.training import Budget


def budget(*, steps: int | None, seconds: float | None, spent: float = 0.0) -> Budget:
    return Budget(steps, seconds, time.perf_counter() - spent, reserve=10.0, chunk=50)


def test_seconds_choose_the_steps_that_fit():
    assert budget(steps=None, seconds=110.0).choose_steps(100, 1.0) in (100 + 99 * 50, 100 + 100 * 50)


@pytest.mark.parametrize(("steps", "spent", "over"), [(1000, 80.0, False), (1000, 95.0, True), (None, 95.0, False)])
def test_seconds_stop_a_run_whose_steps_are_given(steps, spent, over):
    assert budget(steps=steps, seconds=100.0, spent=spent).is_over() == over


def test_steps_alone_are_never_over():
    assert not budget(steps=1000, seconds=None, spent=1e9).is_over()


@pytest.mark.parametrize(("steps", "seconds", "says"), [(None, None, "give --steps"), (120, None, "nearest is 100")])
def test_a_budget_needs_a_length_in_whole_chunks(steps, seconds, says):
    with pytest.raises(UserError, match=says):
        budget(steps=steps, seconds=seconds)


@pytest.mark.parametrize(("steps", "decided", "length"), [(None, None, None), (None, 100, 100), (200, 100, 200)])
def test_a_resumed_run_goes_on_as_decided_or_longer(steps, decided, length):
    assert budget(steps=steps, seconds=100.0).length(100, decided) == length


def test_a_resumed_run_cannot_be_shorter_than_it_is():
    with pytest.raises(UserError, match="has done 100 already"):
        budget(steps=50, seconds=None).length(100, 100)


@pytest.mark.parametrize("shape", [(6, 6), (3, 12, 5), (2, 4, 16)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    """Singular values not far below the largest end in [0.68, 1.21]: the range of the iteration's polynomial there."""
    left, _, right = np.linalg.svd(np.random.default_rng(0).normal(size=shape), full_matrices=False)
    spread = np.linspace(0.3, 1.0, min(shape[-2:]))
    matrix = (left * spread) @ right
    found = np.linalg.svd(np.asarray(orthogonalize(jnp.asarray(matrix, jnp.float32))), compute_uv=False)
    assert found.min() > 0.6
    assert found.max() < 1.3


def test_muon_moves_the_weights_of_blocks_and_adam_the_rest():
    params = {"blocks": {"weight": jnp.ones((2, 8, 4)), "norm": {"scale": jnp.ones((2, 4))}}, "head": jnp.ones((8, 4))}
    gradients = jax.tree.map(lambda p: jnp.arange(1.0, p.size + 1).reshape(p.shape) / 1e3, params)
    moved = {}
    with jax.numpy_dtype_promotion("standard"):
        for muon in (False, True):
            config = OptimizerConfig(peak=0.1, warmup=1, weight_decay=0.0, clip=1e9, muon=muon)
            moved[muon] = advance(config, start(config, params), gradients, jnp.int32(100)).params
    assert not np.allclose(moved[True]["blocks"]["weight"], moved[False]["blocks"]["weight"])
    np.testing.assert_allclose(moved[True]["blocks"]["norm"]["scale"], moved[False]["blocks"]["norm"]["scale"])
    np.testing.assert_allclose(moved[True]["head"], moved[False]["head"])
