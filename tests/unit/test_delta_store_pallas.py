"""A step that skips every block under our kernel: when it is taken, and that it means what XLA's pass means."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.policies import skipped_stack
from pallas_kernels import hopper
from pallas_kernels.add_deltas.config import TILE
from sixbit_jax.dispatch import UnsupportedError
from sixbit_jax.policies import PolicySpec, TemporalDeltaCache, delta_store, delta_store_pallas
from sixbit_jax.policies.delta_store_pallas import StoreSpec

SPEC = StoreSpec("int8", "bfloat16", 1536, "gpu")
RUN = PolicySpec(3, ("only",), 2, 16, 24, 512, "bf16")


@pytest.fixture(autouse=True)
def on_a_hopper_gpu(monkeypatch):
    monkeypatch.setattr(hopper, "capability", lambda: "9.0")


@pytest.fixture
def taken(monkeypatch):
    """As if this were a Hopper GPU."""
    supports = lambda spec: delta_store_pallas.supports_add(dataclasses.replace(spec, platform="gpu"))
    monkeypatch.setitem(
        delta_store._ADD_ALL, "pallas", dataclasses.replace(delta_store._ADD_ALL["pallas"], supports=supports)
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(platform="cpu"), "this is cpu"),
        (dict(cache_format="bf16"), "the deltas are bf16"),
        (dict(cache_format="nvfp4"), "the deltas are nvfp4"),
        (dict(x="float32"), "x is float32"),
        (dict(d=384), "x is 384 wide, expected a multiple of 512"),
    ],
)
def test_refused_with_the_reason(changes, reason):
    assert delta_store_pallas.supports_add(SPEC) is None
    assert reason in delta_store_pallas.supports_add(dataclasses.replace(SPEC, **changes))


def test_older_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(hopper, "capability", lambda: "8.0")
    assert "compute capability 8.0" in delta_store_pallas.supports_add(SPEC)


def test_columns_are_those_of_the_kernel():
    """Said twice: to ask what is supported must not import the kernels."""
    assert delta_store_pallas.ADD_COLUMNS == TILE


def test_a_cpu_takes_xla_and_says_why():
    x = jax.ShapeDtypeStruct((1, 8, 512), jnp.bfloat16)
    assert "xla (not pallas: runs on a Hopper GPU" in str(delta_store.explain("int8", x))
    with pytest.raises(UnsupportedError, match="pallas cannot run this case"):
        delta_store.explain("int8", x, "pallas")


def filled_store(rng, policy):
    """Memory whose deltas are all of another size."""
    memory = policy.allocate(RUN)
    for slot in range(RUN.layers * RUN.branches):
        delta = jnp.asarray((slot + 1) * rng.normal(size=(1, RUN.tokens, RUN.dim)), jnp.float32)
        memory["deltas"] = delta_store.write(policy.cache_format, memory["deltas"], jnp.int32(slot), delta)
    return memory


@pytest.mark.parametrize("slots", [(0, 1, 2), (3, 4, 5)])
def test_a_skipped_step_is_that_of_xla(rng, taken, slots):
    """Bit by bit but where f32 sums that differ in a last bit or two lie on both sides of a middle of bf16."""
    x = jnp.asarray(rng.normal(size=(1, RUN.tokens, RUN.dim)), jnp.bfloat16)
    memory = filled_store(rng, TemporalDeltaCache(tau=1.0, cache_format="int8"))
    places = memory["place"][jnp.asarray(slots)]
    ours, xla = (
        np.asarray(delta_store.add_all("int8", x, memory["deltas"], places, name), np.float32)
        for name in ("pallas", "xla")
    )
    assert (ours != xla).mean() < 1e-3
    assert (np.abs(ours - xla) <= 2**-7 * np.abs(xla) + 1e-4).all()


def lowered(program, *operands):
    return jax.jit(program).trace(*operands).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(("cache_format", "kernels"), [("int8", 1), ("bf16", 0), ("nvfp4", 0)])
def test_a_stack_that_is_skipped_whole_takes_it(taken, cache_format, kernels):
    policy = TemporalDeltaCache(tau=1.0, cache_format=cache_format, together="step")
    memory = jax.eval_shape(lambda: policy.allocate(RUN))
    x, skip = jax.ShapeDtypeStruct((1, RUN.tokens, RUN.dim), jnp.bfloat16), jax.ShapeDtypeStruct((RUN.layers,), bool)
    stack = lambda policy: lambda x, memory, skip: skipped_stack(policy, x, memory, skip)
    assert lowered(stack(policy), x, memory, skip).count("@mosaic_gpu_v2(") == kernels
    # Several videos at once share a program, in which every side of a conditional runs.
    several = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype), (x, memory, skip))
    assert "mosaic" not in lowered(jax.vmap(stack(policy)), *several)
