"""The kernel that adds INT8 deltas, on a real GPU: its own order of roundings, bit by bit, and what it is used for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.kernels import add_deltas as benchmark
from benchmarks.kernels.add_deltas import Case, random_operands
from pallas_kernels.add_deltas import AddDeltasConfig, add_deltas
from sixbit_jax.policies import PolicySpec, TemporalDeltaCache, delta_store

pytestmark = pytest.mark.gpu

CONFIGS = [*benchmark.candidates(Case("", 0, 0, 0)), AddDeltasConfig(4, 1), AddDeltasConfig(1, 16)]


def in_order(x, codes, scale, places):
    """A product and its sum are rounded together; in float64 the product is exact."""
    total = np.asarray(x, np.float32)
    for place in np.clip(np.asarray(places), 0, len(codes) - 1):
        product = np.asarray(codes[place], np.float64) * np.asarray(scale[place], np.float64)[:, None]
        total = (product + total).astype(np.float32)
    return total.astype(jnp.bfloat16).astype(np.float32)


def poison(shape):
    """Leave what no sum is where the next result of this shape will lie."""
    filled = [jnp.full(shape, jnp.nan, jnp.bfloat16) for _ in range(4)]
    for part in jax.block_until_ready(filled):
        part.delete()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize(("m", "k", "layers"), [(1003, 1536, 30), (203, 5120, 40), (1, 512, 1), (9, 512, 67)])
def test_every_bit_and_the_same_twice(m, k, layers, config):
    operands = random_operands(Case("", m, k, layers))
    run = jax.jit(functools.partial(add_deltas, config=config))
    poison((m, k))
    first, second = (np.asarray(run(*operands), np.float32) for _ in range(2))
    np.testing.assert_array_equal(first, in_order(*operands))
    np.testing.assert_array_equal(first, second)
    donating = jax.jit(functools.partial(add_deltas, config=config), donate_argnums=0)
    np.testing.assert_array_equal(np.asarray(donating(operands[0] + 0, *operands[1:]), np.float32), first)


def test_places_in_any_order_and_outside():
    x, codes, scale, _ = random_operands(Case("", 77, 1536, 12))
    places = jnp.asarray([11, 3, 3, 0, -5, 99], jnp.int32)
    found = jax.jit(add_deltas)(x, codes, scale, places)
    np.testing.assert_array_equal(np.asarray(found, np.float32), in_order(x, codes, scale, places))


def test_several_at_once():
    x, codes, scale, places = random_operands(Case("", 64, 1536, 6))
    many = jnp.stack([x, -x])
    together = jax.jit(jax.vmap(add_deltas, in_axes=(0, None, None, None)))(many, codes, scale, places)
    for each, found in zip(many, together, strict=True):
        assert benchmark.error_of_bound((each, codes, scale, places), found) <= 1


def test_full_size():
    operands = random_operands(Case("", 32760, 1536, 30))
    assert benchmark.error_of_bound(operands, jax.jit(add_deltas)(*operands), rows=2048) <= 1


def test_a_skipped_step_takes_it_and_is_that_of_xla():
    """f32 sums that differ in a last bit or two may lie on both sides of a middle of bf16."""
    spec, policy = PolicySpec(4, ("only",), 2, 16, 300, 1536, "bf16"), TemporalDeltaCache(tau=1.0, cache_format="int8")
    memory = policy.allocate(spec)
    for slot in range(8):
        delta = jax.random.normal(jax.random.key(slot), (1, spec.tokens, spec.dim))
        memory["deltas"] = delta_store.write("int8", memory["deltas"], jnp.int32(slot), delta)
    x = jax.random.normal(jax.random.key(9), (1, spec.tokens, spec.dim), jnp.bfloat16)
    assert delta_store.explain("int8", x).name == "pallas"
    places = memory["place"][jnp.arange(4, 8)]
    add = lambda name: jax.jit(lambda x: delta_store.add_all("int8", x, memory["deltas"], places, name))(x)
    ours, xla = (np.asarray(add(name), np.float32) for name in (None, "xla"))
    assert (ours != xla).mean() < 1e-3
    assert (np.abs(ours - xla) <= 2**-7 * np.abs(xla) + 1e-5).all()
