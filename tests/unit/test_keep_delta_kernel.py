"""A delta kept in one pass: the emulation against float64, the kernel by instruction, refusals, lowering."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import ptx_lanes
import pytest

from benchmarks.kernels import keep_delta as benchmark
from pallas_kernels import ptx
from pallas_kernels.keep_delta import KeepDeltaConfig, keep_delta
from pallas_kernels.keep_delta.warp import SUMS, WARPS, Division, Warp


def random_operands(rng, slots, m, k, place):
    """Values of all sizes: a difference is now one of the two, now less than either."""
    spread = lambda *shape: jnp.asarray(rng.normal(size=shape) * np.exp(3 * rng.normal(size=shape)), jnp.bfloat16)
    x = spread(m, k)
    return x, jnp.where(spread(m, k) > 0, spread(m, k), x * 1.0625), spread(slots, m, k), jnp.int32(place)


def nearest(place, slots):
    return min(max(place, 0), slots - 1)


@pytest.mark.parametrize("place", [0, 2, 3, -5, 99])
def test_is_the_difference_and_its_sums(rng, place):
    x, y, deltas, _ = operands = random_operands(rng, 4, 5, 512, place)
    expected = benchmark.expected_of((x, y, deltas, jnp.int32(nearest(place, 4))))
    assert benchmark.error_of_bound(operands, expected, keep_delta(*operands)) <= 1


def test_what_is_expected_is_what_is_said(rng):
    """By float64, which rounds no difference of bf16 that an f32 would not."""
    x, y, deltas, _ = operands = random_operands(rng, 3, 5, 256, 1)
    expected = benchmark.expected_of(operands)
    before, after, old = (np.asarray(each, np.float64) for each in (x, y, deltas[1]))
    sums = [np.abs(each).sum() for each in (after - before, before, after - before - old, old)]
    np.testing.assert_allclose(expected.sums, sums, rtol=2**-23)
    kept = (after - before).astype(np.float32).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(expected.deltas, np.float32), np.asarray(deltas.at[1].set(kept), "f4"))


def test_a_benchmark_refuses_what_is_wrong(rng):
    operands = random_operands(rng, 3, 5, 512, 1)
    expected, kept = benchmark.expected_of(operands), keep_delta(*operands)
    assert 0 <= benchmark.error_of_bound(operands, expected, kept) <= 1
    off = 1 + 2**-24 * 2 * benchmark.additions(5, 512, KeepDeltaConfig())
    for wrong, named in (
        ({"y": operands[0]}, "y is not"),
        ({"y": kept.y.at[4, 511].multiply(-1)}, "y is not"),
        ({"deltas": operands[2]}, "the store is not"),
        ({"deltas": kept.deltas.at[0, 0, 0].multiply(-1)}, "the store is not"),
        ({"deltas": kept.deltas.at[1, 4, 511].multiply(1.01)}, "the store is not"),
        *(({name: getattr(kept, name) * off}, "wrong sums") for name in ("delta", "x", "change", "old")),
        ({"old": jnp.float32(jnp.nan)}, "wrong sums"),
    ):
        with pytest.raises(ValueError, match=named):
            benchmark.error_of_bound(operands, expected, kept._replace(**wrong))


def test_several_at_once_are_each_by_itself(rng):
    each = [random_operands(rng, 3, 4, 256, place) for place in (2, 0, 1)]
    together = jax.vmap(keep_delta)(*(jnp.stack(parts) for parts in zip(*each, strict=True)))
    for i, operands in enumerate(each):
        alone = keep_delta(*operands)
        for one, other in zip(together[:2], alone[:2], strict=True):
            np.testing.assert_array_equal(np.asarray(one[i], np.float32), np.asarray(other, np.float32))
        np.testing.assert_allclose([float(total[i]) for total in together[2:]], alone[2:], rtol=1e-5)


def test_some_of_several_may_be_the_same(rng):
    x, y, deltas, place = random_operands(rng, 3, 4, 256, 1)
    together = jax.vmap(keep_delta, in_axes=(None, 0, None, None))(x, jnp.stack([y, -y]), deltas, place)
    for i, sign in enumerate((1, -1)):
        alone = keep_delta(x, sign * y, deltas, place)
        np.testing.assert_array_equal(np.asarray(together.deltas[i], np.float32), np.asarray(alone.deltas, np.float32))


# Its instructions.


@pytest.fixture
def registers_of_lanes(monkeypatch):
    ptx_lanes.replace_instructions(monkeypatch)


def run_all(monkeypatch, division, memory):
    for cta in range(division.ctas):
        for number in range(WARPS * division.config.warpgroups):
            monkeypatch.setattr(ptx, "thread_in_cta", lambda number=number: 32 * number + np.arange(32))
            Warp(division, cta, *memory.starts).run()


# Beside each, how many tiles the last CTA's warps have.
@pytest.mark.parametrize(
    ("m", "k", "config"),
    [
        (3, 512, KeepDeltaConfig(8, 2, 1)),  # one has 6 of its 8, three none
        (5, 768, KeepDeltaConfig(4, 1, 1)),  # the last one has 3 of 4
        (9, 512, KeepDeltaConfig(2, 1, 2)),  # one of eight has 2, of a second CTA
        (8, 512, KeepDeltaConfig(4, 2, 1)),  # all are whole
        (4, 256, KeepDeltaConfig(1, 1, 1)),  # all are whole
        (7, 256, KeepDeltaConfig(1, 8, 2)),  # seven of eight have 1, and more were to come than there are
        (19, 1280, KeepDeltaConfig(16, 3, 1)),  # the last one of two CTAs
    ],
    ids=str,
)
@pytest.mark.parametrize("place", [1, -2, 7])
def test_warps_visit_every_value_once(monkeypatch, rng, registers_of_lanes, m, k, config, place):
    x, y, deltas, told = operands = random_operands(rng, 3, m, k, place)
    division, place = Division(3, m, k, config), nearest(place, 3)
    sums = np.full((SUMS, division.warps), np.nan, np.float32)
    memory = ptx_lanes.DeviceMemory(x, deltas, sums, y, np.asarray(told)[None])
    memory.use(monkeypatch)
    run_all(monkeypatch, division, memory)

    expected = benchmark.expected_of((*operands[:3], jnp.int32(place)))
    for found, right in zip(memory.arrays[:2], (y, expected.deltas), strict=True):
        np.testing.assert_array_equal(found.view(np.uint16), np.asarray(right).view(np.uint16))
    # Rounding on the way to a warp's sums; of warps without a tile they are zeros, not what lay there.
    totals = memory.arrays[2].astype(np.float64).sum(1)
    np.testing.assert_allclose(totals, expected.sums, rtol=2**-24 * benchmark.additions(m, k, config), atol=0)

    once = np.zeros((3, m * k // 2), np.int64)
    once[place] = 1
    for array, right in enumerate((1, once.reshape(-1), 1, 0, 0)):
        assert (memory.writes[array] == right).all()
    # What is written may not come by the path of what is only read.
    assert memory.constant <= {3, 4}


@pytest.mark.parametrize("place", [0, 57, 79])
def test_a_store_has_more_bytes_than_32_bits_count(monkeypatch, registers_of_lanes, place):
    division = Division(80, 75600, 5120, KeepDeltaConfig())
    monkeypatch.setattr(ptx, "load_global", lambda ref, offset, kind: np.full(32, place))
    monkeypatch.setattr(ptx, "thread_in_cta", lambda: 32 * 3 + np.arange(32))
    cta = division.ctas - 1
    starts = [(i + 1) << 50 for i in range(5)]
    warp = Warp(division, cta, *starts)
    first = (4 * cta + 3) * division.config.tiles * 256 + 8 * np.arange(32)
    np.testing.assert_array_equal(warp.x, starts[0] + 2 * first)
    np.testing.assert_array_equal(warp.y, starts[3] + 2 * first)
    np.testing.assert_array_equal(warp.delta, starts[1] + 2 * (place * 75600 * 5120 + first))


# Lowering.


def avals(m, k, slots):
    shape = jax.ShapeDtypeStruct
    x = shape((m, k), jnp.bfloat16)
    return x, x, shape((slots, m, k), jnp.bfloat16), shape((), jnp.int32)


def for_cuda(program, *operands):
    return jax.jit(program).trace(*operands).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("shape", [(32760, 1536, 60), (75600, 5120, 80), (1, 256, 1), (1003, 2560, 7)])
def test_lowers_in_place_for_cuda(shape):
    (call,) = [line for line in for_cuda(keep_delta, *avals(*shape)).splitlines() if "@mosaic_gpu_v2(" in line]
    first, second = re.search(r"@mosaic_gpu_v2\((%\w+), (%\w+)", call).groups()
    assert (first, second) == ("%arg0", "%arg2")  # x and the store
    aliases = re.findall(r"output_tuple_indices = \[(\d)\], operand_index = (\d)", call)
    assert {("0", "0"), ("1", "1")} <= set(aliases)


@pytest.mark.parametrize("case", benchmark.tuned_cases(), ids=str)
def test_every_candidate_lowers(case):
    for config in benchmark.candidates(case):
        program = functools.partial(keep_delta, config=config)
        assert "mosaic_gpu" in for_cuda(program, *avals(case.m, case.k, case.slots))


def test_several_at_once_are_left_to_xla():
    """A loop over them would copy what each one keeps."""
    several = [jax.ShapeDtypeStruct((2, *each.shape), each.dtype) for each in avals(8, 512, 4)]
    text = for_cuda(jax.vmap(keep_delta), *several)
    assert "mosaic" not in text
    assert "while" not in text


@pytest.mark.parametrize("keep", [keep_delta, benchmark.by_xla])
def test_a_benchmark_s_calls_hand_on_their_results(keep):
    """A block's output is y, then -y: the second delta is twice what the first left behind."""
    operands = benchmark.random_operands(benchmark.Case("", 8, 512))
    y = np.asarray(operands[1], np.float32)
    seen = []
    run = benchmark.in_turn(lambda *given: seen.append(given) or keep(*given), operands)
    for sign in (1, -1, 1):
        np.testing.assert_array_equal(np.asarray(run(), np.float32), sign * y)
    assert len(seen) == 1  # one program for all
    np.testing.assert_array_equal(*(np.asarray(each, np.float32) for each in (operands[1], y)))


# Refusals.


X, DELTAS = np.ones((4, 512), jnp.bfloat16), np.ones((3, 4, 512), jnp.bfloat16)
GOOD = {"x": X, "y": X, "deltas": DELTAS, "place": np.int32(1)}


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"x": X.astype(np.float32)}, TypeError, "x is float32"),
        ({"y": X.astype(np.float16)}, TypeError, "y is float16"),
        ({"deltas": DELTAS.astype(np.int8)}, TypeError, "deltas is int8"),
        ({"place": np.int64(1)}, TypeError, "place is int64"),
        ({"x": X[None]}, ValueError, "x has shape"),
        ({"y": X[0]}, ValueError, "y has shape"),
        ({"y": X[:3].copy()}, ValueError, "y has shape"),
        ({"deltas": DELTAS[0]}, ValueError, "deltas has shape"),
        ({"deltas": DELTAS[:, :3].copy()}, ValueError, "deltas has shape"),
        ({"deltas": DELTAS[..., :256].copy()}, ValueError, "deltas has shape"),
        ({"deltas": DELTAS[:0]}, ValueError, "deltas has no rows"),
        ({"x": X[:0]}, ValueError, "x has no rows"),
        ({"place": np.ones(1, np.int32)}, ValueError, "place has shape"),
        ({"x": X[:, :384].copy(), "y": X[:, :384].copy(), "deltas": DELTAS[..., :384].copy()}, ValueError, "k = 384"),
        ({"config": KeepDeltaConfig(tiles=0)}, ValueError, r"config\.tiles = 0"),
        ({"config": KeepDeltaConfig(tiles=33)}, ValueError, r"config\.tiles = 33"),
        ({"config": KeepDeltaConfig(ahead=0)}, ValueError, r"config\.ahead = 0"),
        ({"config": KeepDeltaConfig(ahead=9)}, ValueError, r"config\.ahead = 9"),
        ({"config": KeepDeltaConfig(warpgroups=9)}, ValueError, r"config\.warpgroups = 9"),
    ],
)
def test_refused_by_name(changes, error, named):
    keep_delta(**GOOD)
    with pytest.raises(error, match=f"keep_delta: {named}"):
        keep_delta(**GOOD | changes)


def test_deltas_too_large_for_32_bits_are_refused():
    with pytest.raises(ValueError, match="x has shape"):
        jax.eval_shape(keep_delta, *avals(1 << 22, 512, 2))
    assert jax.eval_shape(keep_delta, *avals((1 << 22) - 1, 512, 2)).y.shape == ((1 << 22) - 1, 512)
