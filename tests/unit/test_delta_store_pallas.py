"""What a cache does by our kernels: when they are taken, and that they mean what XLA's passes mean."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.policies import skipped_stack
from pallas_kernels import hopper
from pallas_kernels.add_deltas.config import TILE as ADD_TILE
from pallas_kernels.keep_delta.config import TILE as KEEP_TILE
from sixbit_jax.dispatch import UnsupportedError
from sixbit_jax.policies import PolicySpec, TemporalDeltaCache, delta_store, delta_store_pallas
from sixbit_jax.policies.delta_store_pallas import StoreSpec

SPEC = StoreSpec("int8", "bfloat16", 1536, "gpu")
KEEP_SPEC = StoreSpec("bf16", "bfloat16", 1536, "gpu")
RUN = PolicySpec(3, ("only",), 2, 16, 24, 512, "bf16")


@pytest.fixture(autouse=True)
def on_a_hopper_gpu(monkeypatch):
    monkeypatch.setattr(hopper, "capability", lambda: "9.0")


@pytest.fixture
def taken(monkeypatch):
    """To add deltas, as if this were a Hopper GPU."""
    take_ours(monkeypatch, delta_store._ADD_ALL)


@pytest.fixture
def kept(monkeypatch):
    """To keep deltas, as if this were a Hopper GPU."""
    take_ours(monkeypatch, delta_store._KEEP)


def take_ours(monkeypatch, ways):
    ours = ways["pallas"]
    supports = lambda spec: ours.supports(dataclasses.replace(spec, platform="gpu"))
    monkeypatch.setitem(ways, "pallas", dataclasses.replace(ours, supports=supports))


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


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(platform="cpu"), "this is cpu"),
        (dict(cache_format="f32"), "the deltas are f32, the kernel is for bf16"),
        (dict(cache_format="int8"), "the deltas are int8"),
        (dict(cache_format="nvfp4"), "the deltas are nvfp4"),
        (dict(x="float32"), "x is float32"),
        (dict(d=384), "x is 384 wide, expected a multiple of 256"),
    ],
)
def test_keeping_is_refused_with_the_reason(changes, reason):
    assert delta_store_pallas.supports_keep(KEEP_SPEC) is None
    assert delta_store_pallas.supports_keep(dataclasses.replace(KEEP_SPEC, d=256)) is None
    assert reason in delta_store_pallas.supports_keep(dataclasses.replace(KEEP_SPEC, **changes))


def test_older_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(hopper, "capability", lambda: "8.0")
    assert "compute capability 8.0" in delta_store_pallas.supports_add(SPEC)
    assert "compute capability 8.0" in delta_store_pallas.supports_keep(KEEP_SPEC)


def test_columns_are_those_of_the_kernels():
    """Said twice: to ask what is supported must not import the kernels."""
    assert delta_store_pallas.ADD_COLUMNS == ADD_TILE
    assert delta_store_pallas.KEEP_COLUMNS == KEEP_TILE


@pytest.mark.parametrize(
    ("cache_format", "explain"), [("int8", delta_store.explain), ("bf16", delta_store.explain_keep)]
)
def test_a_cpu_takes_xla_and_says_why(cache_format, explain):
    x = jax.ShapeDtypeStruct((1, 8, 512), jnp.bfloat16)
    assert "xla (not pallas: runs on a Hopper GPU" in str(explain(cache_format, x))
    with pytest.raises(UnsupportedError, match="pallas cannot run this case"):
        explain(cache_format, x, "pallas")


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


@pytest.mark.parametrize("slot", [0, 3, 5])
def test_a_kept_delta_is_that_of_xla(rng, kept, slot):
    """Bit by bit; sums to f32, whatever their order: a chain has no more additions than there are values."""
    x, y = (jnp.asarray(rng.normal(size=(1, RUN.tokens, RUN.dim)), jnp.bfloat16) for _ in range(2))
    store = filled_store(rng, TemporalDeltaCache(tau=1.0))["deltas"]
    ours, xla = (
        jax.jit(lambda *given, name=name: delta_store.keep("bf16", *given, name))(x, y, store, jnp.int32(slot))
        for name in ("pallas", "xla")
    )
    for one, other, named in zip(ours[:2], xla[:2], (y, store.at[slot].set(y - x)), strict=True):
        np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))
        np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(named, np.float32))
    before, after, old = (np.asarray(each, np.float64) for each in (x, y, store[slot]))
    size = lambda each: np.abs(each).sum()
    delta = after - before
    bound = 2 * x.size * 2**-24
    for found in (ours, xla):
        np.testing.assert_allclose(found.gamma, size(delta) / size(before), rtol=bound)
        np.testing.assert_allclose(found.change, size(delta - old) / size(old), rtol=bound)


def test_several_kept_at_once_are_each_by_itself(rng, kept):
    x, y = (jnp.asarray(rng.normal(size=(2, 1, RUN.tokens, RUN.dim)), jnp.bfloat16) for _ in range(2))
    store = jnp.stack([filled_store(rng, TemporalDeltaCache(tau=1.0))["deltas"] for _ in range(2)])
    keep = lambda *given: delta_store.keep("bf16", *given, "pallas")
    slots = jnp.asarray([4, 1])
    together = jax.vmap(keep)(x, y, store, slots)
    for i in range(2):
        alone = keep(x[i], y[i], store[i], slots[i])
        for one, other in zip(together[:2], alone[:2], strict=True):
            np.testing.assert_array_equal(np.asarray(one[i], np.float32), np.asarray(other, np.float32))
        np.testing.assert_allclose([together.gamma[i], together.change[i]], [alone.gamma, alone.change], rtol=1e-5)


@pytest.mark.parametrize(
    ("cache_format", "dtype", "dim", "kernels"),
    [
        ("bf16", "bfloat16", 512, 1),
        ("bf16", "bfloat16", 256, 1),
        ("bf16", "bfloat16", 384, 0),
        ("bf16", "float32", 512, 0),
        ("f32", "bfloat16", 512, 0),
        ("int8", "bfloat16", 512, 0),
        ("nvfp4", "bfloat16", 512, 0),
    ],
)
@pytest.mark.parametrize("layers", [None, (0, 2)])
def test_a_block_that_runs_is_kept_by_it(kept, cache_format, dtype, dim, kernels, layers):
    """With a cache for all layers, and for some, where others are only measured."""
    spec = dataclasses.replace(RUN, dim=dim)
    policy = TemporalDeltaCache(tau=1.0, cache_format=cache_format, layers=layers)
    memory = jax.eval_shape(lambda: policy.allocate(spec))
    x, decision = jax.ShapeDtypeStruct((1, RUN.tokens, dim), dtype), jax.ShapeDtypeStruct((), bool)
    run = lambda x, memory, slot, skip: policy.run(lambda x: (jnp.tanh(x), {}), x, memory, slot, skip)
    operands = x, memory, jax.ShapeDtypeStruct((), jnp.int32), decision
    assert lowered(run, *operands).count("@mosaic_gpu_v2(") == kernels
    # Several videos at once are left to XLA.
    several = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype), operands)
    assert "mosaic" not in lowered(jax.vmap(run), *several)


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
