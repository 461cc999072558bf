"""Deltas added in one pass: the emulation against float64, the kernel by instruction, refusals, lowering."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import ptx_lanes
import pytest

from benchmarks.kernels import add_deltas as benchmark
from pallas_kernels import ptx
from pallas_kernels.add_deltas import AddDeltasConfig, add_deltas, warp
from pallas_kernels.add_deltas.warp import WARPS, Division, Warp


def random_store(rng, slots, m, k):
    """x, codes and scales; every code there is, and scales of all sizes."""
    x = jnp.asarray(rng.normal(size=(m, k)), jnp.bfloat16)
    codes = jnp.asarray(rng.integers(-127, 128, (slots, m, k)), jnp.int8)
    return x, codes, jnp.asarray(np.exp(rng.normal(size=(slots, m)) - 4), jnp.float32)


@pytest.mark.parametrize("places", [[4, 5, 6, 7], [7, 0, 7], [2], [-3, 9]])
def test_is_the_sum_up_to_f32(rng, places):
    """Half a step of bf16, and half a step of f32 for every product and every sum."""
    operands = *random_store(rng, 8, 5, 512), jnp.asarray(places, jnp.int32)
    found = add_deltas(*operands)
    assert benchmark.error_of_bound(operands, found) <= 1
    for wrong in (found.at[4, 511].add(found[4, 511] / 64), found.at[0, 0].set(jnp.nan)):
        with pytest.raises(ValueError, match="wrong sums"):
            benchmark.error_of_bound(operands, wrong)


def test_several_at_once_are_each_by_itself(rng):
    x, codes, scale = random_store(rng, 6, 4, 512)
    many, places = jnp.stack([x, -x, 2 * x]), jnp.arange(3)[:, None] + jnp.arange(3)[None]
    together = jax.vmap(add_deltas, in_axes=(0, None, None, 0))(many, codes, scale, places)
    alone = [add_deltas(each, codes, scale, place) for each, place in zip(many, places, strict=True)]
    np.testing.assert_array_equal(np.asarray(together, np.float32), np.asarray(jnp.stack(alone), np.float32))


@pytest.fixture
def registers_of_lanes(monkeypatch):
    ptx_lanes.replace_instructions(monkeypatch)


def test_every_code_is_exact(registers_of_lanes):
    codes = np.arange(-128, 128, dtype=np.int8)
    found = warp.codes_of(codes.view(np.uint32).astype(np.int64))
    np.testing.assert_array_equal(np.stack(found, 1).reshape(-1), codes)


@pytest.mark.parametrize("layers", [1, 4, 9, 34])
@pytest.mark.parametrize("ahead", [1, 4])
def test_warps_add_every_value_once(monkeypatch, rng, registers_of_lanes, layers, ahead):
    """In the order of layers, from the places that are told; the last CTA has two warps without a tile."""
    x, codes, scale = random_store(rng, 40, 3, 1024)
    places = rng.integers(-2, 42, layers).astype(np.int32)
    division = Division(40, 3, 1024, layers, AddDeltasConfig(ahead=ahead))
    memory = ptx_lanes.DeviceMemory(x, codes, scale, places)
    memory.use(monkeypatch)
    assert division.ctas == 2
    for cta in range(division.ctas):
        for number in range(WARPS):
            monkeypatch.setattr(ptx, "thread_in_cta", lambda number=number: 32 * number + np.arange(32))
            run_warp(Warp(division, cta, *memory.starts))
    expected = np.asarray(x, np.float32)
    for place in np.clip(places, 0, 39):
        delta = np.asarray(codes[place], np.float64) * np.asarray(scale[place], np.float64)[:, None]
        expected = (delta + expected).astype(np.float32)
    np.testing.assert_array_equal(memory.arrays[0].astype(np.float32), expected.astype(jnp.bfloat16).astype(np.float32))


def run_warp(one):
    """As `kernel_sm90` does."""
    ahead = one.division.ahead
    state = one.begin()
    for i in range(one.division.turns):
        state = one.turn(i * ahead, state, ahead, ahead)
    one.end(one.division.turns * ahead, state)


def avals(m, k, slots, layers):
    shape = jax.ShapeDtypeStruct
    codes, scale = shape((slots, m, k), jnp.int8), shape((slots, m), jnp.float32)
    return shape((m, k), jnp.bfloat16), codes, scale, shape((layers,), jnp.int32)


def for_cuda(program, *operands):
    return jax.jit(program).trace(*operands).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("shape", [(32760, 1536, 60, 30), (75600, 5120, 80, 40), (1, 512, 1, 1), (1003, 2560, 7, 33)])
def test_lowers_in_place_for_cuda(shape):
    (call,) = [line for line in for_cuda(add_deltas, *avals(*shape)).splitlines() if "@mosaic_gpu_v2(" in line]
    assert "output_operand_alias<" in call


@pytest.mark.parametrize("case", benchmark.tuned_cases(), ids=str)
def test_every_candidate_lowers(case):
    for config in benchmark.candidates(case):
        program = functools.partial(add_deltas, config=config)
        assert "mosaic_gpu" in for_cuda(program, *avals(case.m, case.k, case.layers, case.layers))


def test_a_benchmark_s_calls_hand_on_their_result():
    operands = benchmark.random_operands(benchmark.Case("", 8, 512, 3))
    run = benchmark.in_turn(add_deltas, operands)
    once = add_deltas(*operands)
    np.testing.assert_array_equal(np.asarray(run(), np.float32), np.asarray(once, np.float32))
    twice = add_deltas(once, *operands[1:])
    np.testing.assert_array_equal(np.asarray(run(), np.float32), np.asarray(twice, np.float32))


def test_several_at_once_are_left_to_xla():
    """A loop over them would copy what each one keeps."""
    several = [jax.ShapeDtypeStruct((2, *each.shape), each.dtype) for each in avals(8, 512, 4, 2)]
    text = for_cuda(jax.vmap(add_deltas), *several)
    assert "mosaic" not in text
    assert "while" not in text


X, CODES, SCALE, PLACES = np.ones((4, 512), jnp.bfloat16), np.ones((3, 4, 512), np.int8), np.ones((3, 4)), np.arange(2)
GOOD = {"x": X, "codes": CODES, "scale": SCALE.astype(np.float32), "places": PLACES.astype(np.int32)}


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"x": X.astype(np.float32)}, TypeError, "x is float32"),
        ({"codes": CODES.astype(np.uint8)}, TypeError, "codes is uint8"),
        ({"scale": SCALE}, TypeError, "scale is float64"),
        ({"places": PLACES}, TypeError, "places is int64"),
        ({"x": X[None]}, ValueError, "x has shape"),
        ({"codes": CODES[:, :3].copy()}, ValueError, "codes has shape"),
        ({"scale": GOOD["scale"][:2]}, ValueError, "scale has shape"),
        ({"scale": GOOD["scale"][..., None]}, ValueError, "scale has shape"),
        ({"places": GOOD["places"][:0]}, ValueError, "places has no rows"),
        ({"codes": CODES[:0]}, ValueError, "codes has no rows"),
        ({"x": X[:, :384].copy(), "codes": CODES[..., :384].copy()}, ValueError, "k = 384"),
        ({"config": AddDeltasConfig(ahead=0)}, ValueError, r"config\.ahead = 0"),
        ({"config": AddDeltasConfig(warpgroups=9)}, ValueError, r"config\.warpgroups = 9"),
    ],
)
def test_refused_by_name(changes, error, named):
    with pytest.raises(error, match=f"add_deltas: {named}"):
        add_deltas(**GOOD | changes)


def test_deltas_too_large_for_32_bits_are_refused():
    with pytest.raises(ValueError, match="x has shape"):
        jax.eval_shape(add_deltas, *avals(1 << 22, 512, 2, 2))
