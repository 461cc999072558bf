"""The INT8 matmul: its emulation against exact integers, refusals, lowering, and the kernel interpreted."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from benchmarks.kernels import int8_matmul as benchmark
from pallas_kernels.int8_matmul import Int8MatmulConfig, int8_matmul, kernel_sm90
from pallas_kernels.int8_matmul.config import SHARED_MEMORY, choose_config
from pallas_kernels.int8_matmul.emulation import emulate

SMALL = Int8MatmulConfig(tile_m=64, tile_n=64, stages=2)
VARIANTS = ("plain", "gelu", "gated", "grouped")


def operands(m, k, n, variant):
    return benchmark.random_operands(benchmark.Case("", m, k, n, variant))


@pytest.mark.parametrize("variant", VARIANTS)
def test_emulation_is_exact_integers_scaled(variant):
    """The bound is bf16's rounding of the result: 2^-9 at most, less on average."""
    case = benchmark.Case("", 37, 384, 256, variant)
    values = benchmark.random_operands(case)
    assert benchmark.spot_error(case, benchmark.run_kernel(case, *values)) < 2**-9


def test_products_are_exact_in_s32():
    """The largest sum of the longest row, which f32 could not hold: 13824 · 127² is beyond 2^24 and odd."""
    k = 13824
    x, w = jnp.full((1, k), 127, jnp.int8), jnp.full((128, k), 127, jnp.int8).at[0, 0].set(126)
    y = int8_matmul(x, w, jnp.ones(1), jnp.full(128, 2.0**-20), out_dtype=jnp.float16)
    assert float(y[0, 1]) == float(np.float16(k * 127 * 127 * 2.0**-20))


def test_grouped_scales_multiply_their_own_columns():
    x, w = jnp.ones((1, 256), jnp.int8), jnp.ones((128, 256), jnp.int8)
    y = int8_matmul(x, w, jnp.array([[1.0, 3.0]]), jnp.ones(128))
    assert float(y[0, 0]) == 128 * 1 + 128 * 3


def test_a_residual_needs_no_gate():
    x, w, x_scale, w_scale, bias, _, residual = operands(37, 256, 128, "gated")
    run = functools.partial(int8_matmul, x, w, x_scale, w_scale, bias=bias, residual=residual)
    np.testing.assert_array_equal(run(), run(gate=jnp.ones(128)))
    assert "mosaic_gpu" in jax.jit(run).trace().lower(lowering_platforms=("cuda",)).as_text()


def on_an_h200(case):
    kinds = dict(grouped=case.variant == "grouped", gated=case.variant == "gated")
    return choose_config(case.m, case.k, case.n, **kinds, kind="NVIDIA H200")


@pytest.mark.parametrize("case", benchmark.tuned_cases(), ids=lambda case: f"{case.name} {case.variant}")
def test_plans_leave_room_for_every_vector(case):
    """A plan is tuned without a bias and a gate, and serves products that have them."""
    assert all(config.shared_memory <= SHARED_MEMORY for config in [on_an_h200(case), *benchmark.candidates(case)])


@pytest.mark.parametrize("case", benchmark.cases(), ids=lambda case: f"{case.name} {case.variant}")
def test_lowers_for_cuda_at_every_benchmark_shape(case):
    """Layouts, types and the shared-memory budget, for the configuration that would be chosen on an H200."""
    lower(case, on_an_h200(case))


CANDIDATES = [
    (variant, config)
    for variant in ("gelu", "gated", "grouped")
    for config in benchmark.candidates(benchmark.Case("", 32760, 5120, 5120, variant))
]


@pytest.mark.parametrize(("variant", "config"), CANDIDATES, ids=str)
def test_every_candidate_lowers(variant, config):
    lower(benchmark.Case("", 32760, 5120, 5120, variant), config)


@pytest.mark.parametrize("m", [1, 9, 203])
@pytest.mark.parametrize("variant", ["gated", "grouped"])
def test_lowers_at_any_number_of_rows(m, variant):
    lower(benchmark.Case("", m, 1536, 1536, variant), SMALL)


def lower(case, config):
    avals = jax.eval_shape(lambda: benchmark.random_operands(case))
    kernel = functools.partial(benchmark.run_kernel, case, config=config)
    text = jax.jit(kernel).trace(*avals).lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in text


interpretable = pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"), reason="this jax cannot interpret wgmma with a transposed operand"
)


@interpretable
@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("plain", {}),
        ("gelu", {"stages": 3}),
        ("gated", {"split": "n", "cluster": "m"}),
        ("plain", {"cluster": "n"}),
        ("grouped", {}),
        ("gelu", {"multipliers": 3, "slots": 1}),
        ("gated", {"multipliers": 3, "cluster": "n"}),
        ("added", {}),
    ],
)
def test_interpreted_kernel_matches_its_emulation_without_races(variant, changes):
    """Ragged rows, several tiles a CTA, the ring wrapping round."""
    config = dataclasses.replace(SMALL, **changes)
    x, w, x_scale, w_scale, bias, gate, residual = operands(203, 512, 256, "gated" if variant == "added" else variant)
    bias, gate = bias if variant in ("gelu", "gated") else None, None if variant == "added" else gate
    arguments = (x, w, x_scale, w_scale, bias, gate, residual)
    activation = "gelu_tanh" if variant == "gelu" else None
    interpret = plgpu.InterpretGPUParams(detect_races=True)
    actual = kernel_sm90.run(
        *arguments, activation=activation, out_dtype=jnp.bfloat16, config=config, sms=2, interpret=interpret
    )
    expected = emulate(*arguments, activation=activation, out_dtype=jnp.bfloat16)
    difference = np.abs(np.asarray(actual, np.float32) - np.asarray(expected, np.float32))
    # One unit in the last place of bf16, where f32 sums of the epilogue round differently.
    assert (difference <= 2**-7 * np.abs(np.asarray(expected, np.float32)) + 1e-6).all()


def test_vmap_runs_the_batch():
    x, w, x_scale, w_scale, *_ = operands(8, 128, 128, "plain")
    batched = jax.vmap(int8_matmul, in_axes=(0, None, 0, None))(x[None], w, x_scale[None], w_scale)
    np.testing.assert_array_equal(batched[0], int8_matmul(x, w, x_scale, w_scale))


def arguments(**changes):
    m, k, n = 4, 256, 128
    defaults = dict(
        x=jnp.ones((m, k), jnp.int8), w=jnp.ones((n, k), jnp.int8), x_scale=jnp.ones(m), w_scale=jnp.ones(n)
    )
    return defaults | changes


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(x=jnp.ones((4, 256), jnp.uint8)), "x is uint8"),
        (dict(w=jnp.ones((128, 256), jnp.uint8)), "w is uint8"),
        (dict(x=jnp.ones((0, 256), jnp.int8), x_scale=jnp.ones(0)), "x has no rows"),
        (dict(x=jnp.ones((4, 200), jnp.int8), w=jnp.ones((128, 200), jnp.int8)), "k = 200"),
        (dict(w=jnp.ones((100, 256), jnp.int8), w_scale=jnp.ones(100)), "n = 100"),
        (dict(w=jnp.ones((128, 128), jnp.int8)), "w has shape"),
        (dict(x=jnp.ones((1, 4, 256), jnp.int8)), "x has shape"),
        (dict(x_scale=jnp.ones(5)), "x_scale has shape"),
        (dict(x_scale=jnp.ones((4, 3))), "x_scale has shape"),
        (dict(x_scale=jnp.ones(4, jnp.bfloat16)), "x_scale is bfloat16"),
        (dict(w_scale=jnp.ones((128, 1))), "w_scale has shape"),
        (dict(w_scale=jnp.ones(128).at[3].set(jnp.nan)), "w_scale holds"),
        (dict(bias=jnp.ones(127)), "bias has shape"),
        (dict(activation="gelu"), 'activation is "gelu"'),
        (dict(gate=jnp.ones(128)), "residual is missing"),
        (dict(gate=jnp.ones(128), residual=jnp.ones((4, 128))), "residual is float32"),
        (dict(out_dtype=jnp.float32), "out_dtype is float32"),
    ],
)
def test_bad_arguments_are_named(changes, named):
    values = arguments(**changes)
    positional = [values.pop(name) for name in ("x", "w", "x_scale", "w_scale")]
    with pytest.raises((TypeError, ValueError), match=named):
        int8_matmul(*positional, **values)
