"""Quantizing activations: the emulation against a plain loop, refusals, lowering, and the kernel interpreted."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from lane_products import left_of_lanes, product_of_lanes, right_of_lanes

from benchmarks.kernels import quantize_rows as benchmark
from pallas_kernels.quantize_rows import QuantizeRowsConfig, nvfp4_sm90, quantize_rows, registers
from pallas_kernels.quantize_rows.api import run_kernel
from pallas_kernels.quantize_rows.config import WIDEST, case_name, choose_config
from pallas_kernels.quantize_rows.emulation import emulate
from pallas_kernels.quantize_rows.ring import Ring
from pallas_kernels.quantize_rows.spec import Spec
from pallas_kernels.quantize_rows.straight import Straight
from pallas_kernels.tables import lookup
from sixbit_jax.formats import hadamard, quantize_nvfp4


def rows_of_all_sizes(rng, m, k):
    """Rows whose magnitudes differ by orders, with a mean, as hidden states have."""
    return jnp.asarray((rng.normal(size=(m, k)) + 0.5) * np.exp(rng.normal(size=(m, 1))), jnp.bfloat16)


def sylvester(size):
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(size)


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("group", [None, 128])
def test_matches_a_plain_float64_version(rng, rotate, group):
    x = rows_of_all_sizes(rng, 6, 384)
    q = quantize_rows(x, rotate=rotate, group=group)
    values = np.asarray(x, np.float64)
    rotated = (values.reshape(6, 3, 128) @ sylvester(128)).reshape(6, 384) if rotate else values
    groups = rotated.reshape(6, 1 if group is None else 3, -1)
    scale = np.abs(groups).max(-1) / 127
    np.testing.assert_allclose(np.asarray(q.scale).reshape(scale.shape), scale, rtol=1e-6)
    # Half a step, and f32's rounding of the quotient.
    error = np.abs(np.asarray(q.codes, np.float64).reshape(groups.shape) * scale[..., None] - groups)
    assert (error <= scale[..., None] * (0.5 + 1e-4)).all()
    np.testing.assert_allclose(q.total, np.abs(values).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(q.largest, np.abs(values).max(1))


def test_norm_and_modulation_come_before_the_rotation(rng):
    x, k = rows_of_all_sizes(rng, 5, 256), 256
    factor, offset = (jnp.asarray(rng.normal(size=k), jnp.float32) for _ in range(2))
    q = quantize_rows(x, norm="layer", factor=factor, offset=offset)
    values = np.asarray(x, np.float64)
    normed = (values - values.mean(1, keepdims=True)) / np.sqrt(values.var(1, keepdims=True) + 1e-6)
    expected = normed * np.asarray(factor, np.float64) + np.asarray(offset, np.float64)
    # Half an INT8 step, and bf16's rounding before it.
    step = np.abs(expected).max(1, keepdims=True) / 127
    actual = np.asarray(q.codes, np.float64) * np.asarray(q.scale, np.float64)[:, None]
    assert (np.abs(actual - expected) <= 0.51 * step + 2**-8 * np.abs(expected)).all()


def test_zeros_have_scale_one():
    q = quantize_rows(jnp.zeros((2, 128), jnp.bfloat16), rotate=True)
    assert not q.codes.any()
    assert q.scale.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("rotate", [False, True])
def test_nvfp4_is_the_format_under_an_outer_scale_a_row(rng, rotate):
    x = rows_of_all_sizes(rng, 6, 384)
    q = quantize_rows(x, rotate=rotate, form="nvfp4")
    values = hadamard(x.astype(jnp.float32), 128) if rotate else x.astype(jnp.float32)
    np.testing.assert_allclose(q.scale, jnp.abs(values).max(1) / (448 * 6), rtol=1e-5)
    expected = quantize_nvfp4(values, tensor_scale=q.scale)
    # Reciprocals instead of divisions: what lies next to the middle between two codes or scales may fall either way.
    scales = [np.asarray(scale).view(np.uint8).astype(int) for scale in (q.block_scale, expected.block_scale)]
    assert np.abs(scales[0] - scales[1]).max() <= 1 and (scales[0] != scales[1]).mean() < 0.01
    assert (np.asarray(q.codes) != np.asarray(expected.packed)).mean() < 0.02
    np.testing.assert_allclose(q.total, np.abs(np.asarray(x, np.float64)).sum(1), rtol=1e-5)


def test_nvfp4_zeros_have_scale_one():
    q = quantize_rows(jnp.zeros((2, 128), jnp.bfloat16), rotate=True, form="nvfp4")
    assert not q.codes.any() and q.scale.tolist() == [1.0, 1.0]
    assert (q.block_scale == 2.0**-6).all()


def test_codes_by_bits_are_the_nearest():
    """The instructions of `blocks.CODE` on integers: every code, middles and what is beside them."""
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    middles = (table[:-1] + table[1:]) / 2
    # Below 1 what is within 2^-24 of a middle counts as the middle.
    y = np.concatenate([table, middles, middles * np.float32(0.9999), middles * np.float32(1.0001), [np.float32(5.5)]])
    below = y < 1
    bits = np.where(below, y + np.float32(1), y).view(np.uint32)
    rounded = (bits + ((bits >> 22) & 1) + np.uint32(0x1FFFFF)) >> 22
    codes = rounded - np.where(below, 254, 252)
    # The first of the nearest two is the even one if it has an even index, else the second.
    distance = np.abs(y[:, None].astype(np.float64) - table)
    nearest = [min(np.flatnonzero(d == d.min()), key=lambda code: code % 2) for d in distance]
    np.testing.assert_array_equal(codes, nearest)


def test_each_thread_of_the_permuted_product_holds_one_block():
    """Lane c of four holds columns 2c, 2c + 1 of every 8: in order they are the sixteen columns from 16c on."""
    columns = nvfp4_sm90.order().reshape(8, 4, 2)
    for lane in range(4):
        assert columns[:, lane].flatten().tolist() == list(range(16 * lane, 16 * lane + 16))


@pytest.mark.parametrize("config", [QuantizeRowsConfig(16, 1), QuantizeRowsConfig(8, 2)])
def test_block_scales_come_back_in_order(config):
    """Stored by block, tile, group of the tile, row, lane and half of a group."""
    kernel = nvfp4_sm90.Nvfp4Kernel(24, 1152, Spec(form="nvfp4"), config)
    place = np.arange(kernel.blocks * kernel.tiles * 64 * 8)
    rest, half = place // 2, place % 2
    rest, lane = rest // 4, rest % 4
    rest, row = rest // config.rows, rest % config.rows
    group = rest % (kernel.tiles * kernel.tile_groups)
    row = rest // (kernel.tiles * kernel.tile_groups) * config.rows + row
    label = (row * 7 + (group * 8 + half * 4 + lane)) % 126
    expected = (np.arange(24)[:, None] * 7 + np.arange(1152 // 16)) % 126
    by_row = nvfp4_sm90.by_row(jnp.asarray(label, jnp.int8), kernel, 24)
    np.testing.assert_array_equal(np.asarray(by_row).view(np.int8), expected)


def straight_order(x):
    """Lane 4g + c, chunk q, word p: columns 32q + 8c + 2p and the next of group g."""
    return x.reshape(8, 4, 4, 4, 2).transpose(0, 2, 1, 3, 4).reshape(32, 4, 4, 2)


def ring_order(x):
    """Columns 64 (q // 2) + 16c + 8 (q % 2) + 2p."""
    return x.reshape(8, 2, 4, 2, 4, 2).transpose(0, 2, 1, 3, 4, 5).reshape(32, 4, 4, 2)


@pytest.mark.parametrize("order", [straight_order, ring_order])
def test_lanes_that_hold_groups_rotate_them_in_place(rng, order):
    x = rng.integers(-9, 10, (8, 128)).astype(float)
    of_lane, expected = order(x), order(x @ sylvester(128) * np.sqrt(128))
    words = [[of_lane[:, q, p] for p in range(4)] for q in range(4)]
    for half in (0, 1):
        for q, pairs in enumerate(registers.rotated(words, half, product_of_lanes, np.add, np.subtract)):
            for word, pair in zip((2 * half, 2 * half + 1), pairs, strict=True):
                np.testing.assert_allclose(np.stack(pair, axis=1), expected[:, q, word], atol=1e-9)


def test_the_diagonal_of_a_product_with_itself_has_the_squares_of_groups(rng):
    x = rng.integers(-9, 10, (8, 128)).astype(float)
    of_lane, sums = straight_order(x), np.zeros((16, 8))
    for q in range(4):
        a, b, c, d = (of_lane[:, q, p] for p in range(4))
        sums += left_of_lanes([a, b, c, d]) @ right_of_lanes([a, c])
        sums += left_of_lanes([b, a, d, c]) @ right_of_lanes([b, d])
    np.testing.assert_array_equal(np.diagonal(sums), (x**2).sum(1))


@pytest.mark.parametrize(("kind", "order"), [(Straight, straight_order), (Ring, ring_order)])
def test_lanes_ask_for_the_channels_they_hold(kind, order):
    columns = order(np.broadcast_to(np.arange(128), (8, 128)))
    for lane in range(32):
        for q in range(4):
            first = kind.chunk_column(q) + lane % 4 * kind.lane_columns
            assert columns[lane, q].flatten().tolist() == list(range(first, first + 8))


# The number of rows only sets the number of CTAs.
SHAPES = [case for case in benchmark.cases() if case.m == 32760]


@pytest.mark.parametrize("case", SHAPES, ids=lambda case: f"{case.name} {case.variant}")
def test_lowers_for_cuda_at_every_benchmark_shape(case):
    avals = jax.eval_shape(lambda: benchmark.random_operands(case))
    config = choose_config(case.k, case.spec, "NVIDIA H200")
    kernel = functools.partial(benchmark.run_kernel, case, config=config)
    assert "mosaic_gpu" in jax.jit(kernel).trace(*avals).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("variant", ["plain", "rotated", "modulated", "modulated rotated", "nvfp4", "modulated nvfp4"])
@pytest.mark.parametrize("k", [128, 384, 2048, 3072, 6144, 12288, 13952, 16384, WIDEST])
def test_lowers_at_any_width(k, variant):
    case = benchmark.Case("", 1003, k, variant)
    kernel = functools.partial(benchmark.run_kernel, case, config=choose_config(k, case.spec, "unknown"))
    avals = jax.eval_shape(lambda: benchmark.random_operands(case))
    assert "mosaic_gpu" in jax.jit(kernel).trace(*avals).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(("k", "variant"), [(WIDEST + 128, "modulated"), (28416 + 128, "rotated"), (28800, "nvfp4")])
def test_rows_that_shared_memory_cannot_hold_are_refused(k, variant):
    """An odd number of groups, which cannot be cut into parts."""
    case = benchmark.Case("", 64, k, variant)
    avals = jax.eval_shape(lambda: benchmark.random_operands(case))
    with pytest.raises(ValueError, match=rf"config\.rows = 8 parts of {k} columns take \d+ bytes of shared memory"):
        jax.jit(functools.partial(benchmark.run_kernel, case)).trace(*avals).lower(lowering_platforms=("cuda",))


@pytest.mark.parametrize("m", [1, 9, 1003])
def test_lowers_at_any_number_of_rows(m):
    case = benchmark.Case("", m, 384, "grouped")
    kernel = functools.partial(benchmark.run_kernel, case, config=QuantizeRowsConfig(split=1))
    avals = jax.eval_shape(lambda: benchmark.random_operands(case))
    assert "mosaic_gpu" in jax.jit(kernel).trace(*avals).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("case", benchmark.tuned_cases(), ids=str)
def test_every_candidate_lowers(case):
    """Late CTAs change which rows are taken, not what is done with them: some that are late stand for any number."""
    avals = jax.eval_shape(lambda: benchmark.random_operands(case))
    configs = [dataclasses.replace(c, late=min(c.late, 1), stretch=1) for c in benchmark.in_registers(case)]
    for config in dict.fromkeys(configs):
        kernel = functools.partial(benchmark.run_kernel, case, config=config)
        assert "mosaic_gpu" in jax.jit(kernel).trace(*avals).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    "config",
    [
        QuantizeRowsConfig(2, warpgroups=3, warps=1),
        QuantizeRowsConfig(1, warps=4),
        QuantizeRowsConfig(2, warpgroups=3, warps=1, ahead=2),
        QuantizeRowsConfig(1, warps=4, ahead=1, keep=False),
        QuantizeRowsConfig(4, warps=1, ahead=1, crossed=True),
    ],
)
@pytest.mark.parametrize("m", [1, 9, 1003])
def test_rows_in_registers_lower_at_any_number_of_rows(m, config):
    case = benchmark.Case("", m, 384 if config.warps == 1 else 4224, "rotated")
    avals = jax.eval_shape(lambda: benchmark.random_operands(case))
    kernel = functools.partial(benchmark.run_kernel, case, config=config)
    assert "mosaic_gpu" in jax.jit(kernel).trace(*avals).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("m", [1, 9, 1003])
def test_everything_at_once_lowers_at_any_number_of_rows(m):
    """Norm, channels, GELU, rotation and a scale a group, in parts of rows that differ, some late, lanes crossed."""
    spec = Spec(rotate=True, activation="gelu_tanh", grouped=True, norm="layer", affine=True)
    config = QuantizeRowsConfig(1, warps=4, ahead=1, keep=False, late=1, crossed=True)
    avals = jax.ShapeDtypeStruct((m, 4224), jnp.bfloat16), *[jax.ShapeDtypeStruct((4224,), jnp.float32)] * 2
    kernel = functools.partial(run_kernel, spec=spec, config=config)
    assert "mosaic_gpu" in jax.jit(kernel).trace(*avals).lower(lowering_platforms=("cuda",)).as_text()


def test_four_bits_need_rows_ahead():
    with pytest.raises(ValueError, match=r"config\.ahead = 0"):
        run_kernel(jnp.ones((8, 512), jnp.bfloat16), spec=Spec(form="nvfp4"), config=QuantizeRowsConfig(warps=1))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(warps=2), "warps 2"),
        (dict(warps=4, rows=2), "warps 4, rows 2"),
        (dict(warps=1, ahead=-1), r"config\.ahead = -1"),
        (dict(warps=1, keep=False), r"config\.keep is False"),
        (dict(warps=1, crossed=True), r"config\.crossed is True"),
        (dict(warps=1, late=-1), r"config\.late = -1, stretch = 1"),
        (dict(warps=1, stretch=0), r"config\.late = 0, stretch = 0"),
        (dict(warps=1, warpgroups=8, ahead=8), r"config\.ahead = 8 takes"),
    ],
)
def test_bad_configurations_are_named(changes, named):
    config = QuantizeRowsConfig(**{"rows": 1, **changes})
    with pytest.raises(ValueError, match=named):
        run_kernel(jnp.ones((8, 1024), jnp.bfloat16), spec=Spec(), config=config)


def test_what_needs_its_own_registers_is_tuned_on_its_own():
    assert case_name(8960, Spec()) == "k8960 plain" and case_name(8960, Spec(rotate=True)) == "k8960 rotated"
    gelu = Spec(activation="gelu_tanh")
    assert case_name(8960, gelu) == "k8960 gelu_tanh"
    assert case_name(1536, Spec(rotate=True, affine=True)) == "k1536 modulated rotated"
    for change in (dict(norm="layer"), dict(affine=True)):
        assert case_name(8960, dataclasses.replace(gelu, **change)) == "k8960 gelu_tanh modulated"
        assert case_name(8960, Spec(**change)) == "k8960 modulated"


def test_entries_from_before_rows_came_ahead_still_load(tmp_path):
    fields = {"rows": 1, "slots": 1, "split": 1, "warpgroups": 8, "warps": 1}
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps({"device": {"k1536 plain": fields}}))
    assert lookup(path, "device", "k1536 plain", QuantizeRowsConfig) == QuantizeRowsConfig(1, warpgroups=8, warps=1)


@pytest.mark.skipif(not hasattr(plgpu, "InterpretGPUParams"), reason="this jax cannot interpret such a kernel")
@pytest.mark.parametrize(
    ("k", "config", "spec"),
    [
        (1024, QuantizeRowsConfig(), Spec(rotate=True)),
        (1152, QuantizeRowsConfig(warpgroups=1), Spec(rotate=True)),  # a last tile that is not full
        (1024, QuantizeRowsConfig(split=2), Spec(rotate=True, activation="gelu_tanh")),
        (1024, QuantizeRowsConfig(split=4, warpgroups=1), Spec()),
        (384, QuantizeRowsConfig(rows=16, slots=2), Spec(rotate=True, grouped=True)),
        (1024, QuantizeRowsConfig(rows=64, split=8), Spec(rotate=True, norm="layer")),
        (384, QuantizeRowsConfig(rows=16, warpgroups=3), Spec(rotate=True, norm="rms")),
        (384, QuantizeRowsConfig(rows=16, warpgroups=3), Spec(norm="layer")),  # a group beyond the last
    ],
)
def test_interpreted_kernel_matches_its_emulation_without_races(rng, k, config, spec):
    x = rows_of_all_sizes(rng, 21, k)
    actual = run_kernel(x, spec=spec, config=config, interpret=plgpu.InterpretGPUParams(detect_races=True))
    expected = emulate(x, spec=spec)
    # A value at the middle between two codes may fall either way: f32 sums run in another order.
    difference = np.abs(np.asarray(actual[0], np.int32) - np.asarray(expected[0], np.int32))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 2e-3
    for ours, theirs in zip(actual[1:], expected[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize(
    ("x", "changes", "named"),
    [
        (jnp.ones((4, 128)), {}, "x is float32"),
        (jnp.ones((4, 100), jnp.bfloat16), {}, "k = 100"),
        (jnp.ones((0, 128), jnp.bfloat16), {}, "x has no rows"),
        (jnp.ones((1, 4, 128), jnp.bfloat16), {}, "x has shape"),
        (jnp.ones((4, 128), jnp.bfloat16), dict(group=64), "group is 64"),
        (jnp.ones((4, 128), jnp.bfloat16), dict(activation="relu"), 'activation is "relu"'),
        (jnp.ones((4, 128), jnp.bfloat16), dict(norm="batch"), 'norm is "batch"'),
        (jnp.ones((4, 128), jnp.bfloat16), dict(form="mxfp4"), 'form is "mxfp4"'),
        (jnp.ones((4, 128), jnp.bfloat16), dict(form="nvfp4", group=128), "group is 128, expected None"),
        (jnp.ones((4, 128), jnp.bfloat16), dict(factor=jnp.ones(64)), "factor has shape"),
        (jnp.ones((4, 128), jnp.bfloat16), dict(offset=jnp.ones(128, jnp.bfloat16)), "offset is bfloat16"),
        (jnp.ones((4, 128), jnp.bfloat16), dict(factor=jnp.full(128, jnp.inf)), "factor holds"),
    ],
)
def test_bad_arguments_are_named(x, changes, named):
    with pytest.raises((TypeError, ValueError), match=named):
        quantize_rows(x, **changes)
