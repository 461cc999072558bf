"""The kernel that keeps a delta, on a real GPU: every bit of what it writes, its sums, and what it is used for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks.kernels import keep_delta as benchmark
from benchmarks.kernels.keep_delta import Case, expected_of, random_operands
from pallas_kernels.keep_delta import keep_delta
from sixbit_jax.policies import PolicySpec, TemporalDeltaCache, delta_store

pytestmark = pytest.mark.gpu

CONFIGS = benchmark.candidates(Case("", 0, 0))
SUMS = ("delta", "x", "change", "old")


def poison(*shapes):
    """Leave what no result is where the next ones of these shapes will lie."""
    filled = [jnp.full(shape, jnp.nan, jnp.bfloat16) for shape in shapes for _ in range(4)]
    for part in jax.block_until_ready(filled):
        part.delete()


def assert_same(a, b):
    """Bit by bit, sums too: they are always added up in the same order."""
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(*(np.asarray(each).view(np.uint8) for each in (one[None], other[None])))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize(("m", "k"), [(1003, 1536), (203, 5120), (1, 256), (9, 512)])
def test_every_bit_and_the_same_twice(m, k, config):
    operands = random_operands(Case("", m, k, 4))
    keep = functools.partial(keep_delta, config=config)
    poison((m, k), (4, m, k))
    first, second = (jax.jit(keep)(*operands) for _ in range(2))
    assert benchmark.error_of_bound(operands, expected_of(operands), first, config) <= 1
    assert_same(first, second)
    x, y, deltas, place = operands
    assert_same(jax.jit(keep, donate_argnums=(0, 2))(x + 0, y, deltas + 0, place), first)


@pytest.mark.parametrize(("place", "nearest"), [(0, 0), (-7, 0), (2, 2), (3, 2), (2**31 - 1, 2)])
def test_a_place_that_is_none_is_the_nearest(place, nearest):
    x, y, deltas, _ = random_operands(Case("", 77, 1536, 3))
    expected = expected_of((x, y, deltas, jnp.int32(nearest)))
    found = jax.jit(keep_delta)(x, y, deltas, jnp.int32(place))
    assert benchmark.error_of_bound((x, y, deltas, place), expected, found) <= 1


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_what_is_not_finite_reaches_the_sums_and_no_other_row(bad):
    x, y, deltas, place = random_operands(Case("", 77, 1536, 3))
    x, deltas = x.at[33, 700].set(bad), deltas.at[place, 50, 5].set(bad)
    found = jax.jit(keep_delta)(x, y, deltas, place)
    expected = deltas.at[place].set(y - x)
    for one, other in zip((found.y, found.deltas), (y, expected), strict=True):
        np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))
    assert not any(np.isfinite(getattr(found, name)) for name in SUMS)
    assert (~np.isfinite(np.asarray(found.deltas[place], np.float32))).sum() == 1


def test_several_at_once_are_each_by_itself():
    x, y, deltas, _ = random_operands(Case("", 64, 1536, 3))
    many = jnp.stack([x, -x]), jnp.stack([y, y]), jnp.stack([deltas, 2 * deltas]), jnp.asarray([2, 0], jnp.int32)
    together = jax.jit(jax.vmap(keep_delta))(*many)
    for i in range(2):
        alone = jax.jit(keep_delta)(*(each[i] for each in many))
        assert_same([each[i] for each in together[:2]], alone[:2])
        np.testing.assert_allclose(
            np.asarray([each[i] for each in together[2:]]), np.asarray(alone[2:]), rtol=1e-5, atol=0
        )


def test_full_size():
    operands = random_operands(Case("", 32760, 1536))
    assert benchmark.error_of_bound(operands, expected_of(operands), jax.jit(keep_delta)(*operands)) <= 1


@pytest.mark.parametrize(
    ("cache_format", "by"), [("bf16", "pallas"), ("f32", "xla"), ("int8", "xla"), ("nvfp4", "xla")]
)
def test_bf16_deltas_are_kept_by_it(cache_format, by):
    x = jax.ShapeDtypeStruct((1, 300, 1536), jnp.bfloat16)
    assert delta_store.explain_keep(cache_format, x).name == by


def two_steps(policy, spec):
    """All blocks of one branch compute at two steps; latents, memory, and what was noted of each step and block."""

    def block(x):
        # As far as XLA rounds it: fused with what is measured, it would measure what is not rounded yet.
        return lax.optimization_barrier(jnp.tanh(x) + x / 2), {}

    def layer(carry, slot):
        x, memory, notes = policy.run(block, *carry, slot, jnp.bool_(False))
        return (x, memory), notes

    def step(memory, x):
        (x, memory), notes = lax.scan(layer, (x, memory), jnp.arange(spec.layers))
        return memory, (x, notes)

    x = jax.random.normal(jax.random.key(0), (2, 1, spec.tokens, spec.dim), jnp.bfloat16)
    memory, (x, notes) = jax.jit(lambda x: lax.scan(step, policy.allocate(spec), x))(x)
    return np.asarray(x, np.float32), np.asarray(memory["deltas"], np.float32), notes


def test_a_cache_keeps_and_measures_as_by_xla(monkeypatch):
    """f32 sums are added up in another order: of ours no chain has more than 82 additions, and each rounds by 2^-24.

    Two sums make a ratio, and XLA's chains are of that order.
    """
    spec = PolicySpec(4, ("only",), 1, 2, 300, 1536, "bf16")
    policy = TemporalDeltaCache(tau=1.0)
    ours = two_steps(policy, spec)
    monkeypatch.delitem(delta_store._KEEP, "pallas")
    xla = two_steps(policy, spec)
    for one, other in zip(ours[:2], xla[:2], strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.isfinite(ours[2]["change"][1]).all()
    for name in ("gamma", "change"):
        np.testing.assert_allclose(*(np.asarray(each[2][name])[-1] for each in (ours, xla)), rtol=2e-5, atol=0)
    np.testing.assert_allclose(ours[2]["gamma"][0], xla[2]["gamma"][0], rtol=2e-5, atol=0)
