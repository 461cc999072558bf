"""`linear` with quantized weights: every activation × weight format against the oracle, and what must survive jit.

The error model of `xla` against `reference`. Both get the same operands, rounded by the same code, so what differs is
the products: which values they multiply in which type, and the order of their sums. The yardstick is what a bf16
product of the oracle's operands loses against an exact one; twice that is allowed, plus f32 sums and the rounding of
the result to x's type.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.dispatch import UnsupportedError
from sixbit_jax.formats import (
    QuantizedWeight,
    effective_weight,
    hadamard,
    main_weight,
    pack_int4,
    quantize_int8,
    quantize_nvfp4,
    to_int8,
)
from sixbit_jax.linear import explain, linear, routed_linear
from sixbit_jax.linear.activations import quantize, rotate, smooth, value_of
from sixbit_jax.routes import Route

K, N = 256, 24
ACTS = (None, "int8", "int4", "nvfp4")


def int4(w, group=None):
    scaled = quantize_int8(w * (7 / 127), group=group)
    grid = jnp.clip(jnp.round(w / spread(scaled.scale, w.shape)), -8, 7).astype(jnp.int8)
    return pack_int4(grid, scaled.scale)


def spread(scale, shape):
    return jnp.repeat(scale, shape[-1] // scale.shape[-1], axis=-1)


def low_rank(rng, rank=4):
    parts = rng.standard_normal((rank, K)), rng.standard_normal((N, rank))
    return tuple(jnp.asarray(0.1 * part, jnp.bfloat16) for part in parts)


# Every format of the weight, then every part that can surround it, then several at once.
WEIGHTS = {
    "nvfp4": lambda w, rng: quantize_nvfp4(w),
    "nvfp4, scale per row": lambda w, rng: quantize_nvfp4(w, tensor_scale=jnp.abs(w).max(-1) / 2688),
    "int8": lambda w, rng: quantize_int8(w),
    "int8, groups": lambda w, rng: quantize_int8(w, group=64),
    "int4": lambda w, rng: int4(w),
    "int4, groups": lambda w, rng: int4(w, group=32),
    "smoothed": lambda w, rng: QuantizedWeight(
        quantize_nvfp4(w * 2), smooth=jnp.asarray(np.exp(rng.standard_normal(K)), jnp.float32)
    ),
    "rotated": lambda w, rng: QuantizedWeight(quantize_nvfp4(hadamard(w)), rotated=128),
    "rotated by 64": lambda w, rng: QuantizedWeight(quantize_int8(hadamard(w, 64)), rotated=64),
    "offset": lambda w, rng: QuantizedWeight(int4(w), zero=jnp.asarray(rng.standard_normal((N, 1)), jnp.float32)),
    "offsets in groups": lambda w, rng: QuantizedWeight(
        int4(w, 32), zero=jnp.asarray(rng.standard_normal((N, 4)), jnp.float32)
    ),
    "low rank": lambda w, rng: QuantizedWeight(quantize_nvfp4(w), low_rank=low_rank(rng)),
    "grouped activations": lambda w, rng: QuantizedWeight(quantize_nvfp4(w), act_group=64),
    "grouped activations, finer weight": lambda w, rng: QuantizedWeight(int4(w, 32), act_group=128),
    "everything": lambda w, rng: QuantizedWeight(
        int4(hadamard(w)),
        smooth=jnp.asarray(np.exp(rng.standard_normal(K)), jnp.float32),
        zero=jnp.asarray(0.1 * rng.standard_normal((N, 1)), jnp.float32),
        low_rank=low_rank(rng),
        rotated=128,
        act_group=64,
    ),
}


def operands(rng, weight, shape=(5, K), dtype=jnp.float32):
    x = jnp.asarray(rng.standard_normal(shape), dtype)
    w = WEIGHTS[weight](jnp.asarray(rng.standard_normal((N, K)), jnp.float32), rng)
    return x, w, jnp.asarray(rng.standard_normal(N), dtype)


def tolerance(x, w, bias, act):
    """Twice the error of a bf16 product of the oracle's own operands, plus the rounding of the result."""
    w = w if isinstance(w, QuantizedWeight) else QuantizedWeight(w)
    stored = QuantizedWeight(to_int8(w.weight) if act in ("int8", "int4") else w.weight, zero=w.zero)
    left, right = value_of(quantize(rotate(smooth(x, w), w), act, w.act_group)), main_weight(stored)
    if w.low_rank is not None:
        down, up = (part.astype(jnp.float32) for part in w.low_rank)
        left, right = jnp.concatenate([left, smooth(x, w)], -1), jnp.concatenate([right, up @ down], -1)
    exact = np.asarray(left, np.float64) @ np.asarray(right, np.float64).T
    rough = np.asarray(left.astype(jnp.bfloat16), np.float64) @ np.asarray(right.astype(jnp.bfloat16), np.float64).T
    size = np.abs(exact + np.asarray(bias, np.float64)).max()
    # The largest error of a bf16 product stands for all of them; f32 sums lose at most k roundings of the largest sum.
    sums = 2.0**-24 * np.abs(np.asarray(left)) @ np.abs(np.asarray(right)).T
    return 2 * np.abs(rough - exact).max() + sums.max() + 2 * float(jnp.finfo(x.dtype).eps) * size


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_xla_is_as_good_as_a_bf16_product(rng, weight, act, dtype):
    x, w, bias = operands(rng, weight, dtype=dtype)
    ours = linear(x, w, bias, act=act, implementation="xla")
    oracle = linear(x, w, bias, act=act, implementation="reference")
    assert ours.dtype == oracle.dtype == dtype
    error = np.abs(np.asarray(ours, np.float64) - np.asarray(oracle, np.float64)).max()
    assert error <= tolerance(x, w, bias, act)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_oracle_approximates_the_dense_product(rng, weight, act):
    """A guard against an oracle that is wrong the same way: formats lose percents, a missing part loses everything."""
    x, w, bias = operands(rng, weight)
    dense = effective_weight(w if isinstance(w, QuantizedWeight) else QuantizedWeight(w))
    exact = np.asarray(x, np.float64) @ np.asarray(dense, np.float64).T + np.asarray(bias, np.float64)
    y = np.asarray(linear(x, w, bias, act=act, implementation="reference"), np.float64)
    # Relative errors of one rounded operand: INT8 0.7 %, INT4 12 %, NVFP4 9.5 % (Gaussian values), and smoothing widens
    # a token's range by a few times. None is exact up to the sums.
    bound = {None: 1e-5, "int8": 0.05, "int4": 0.45, "nvfp4": 0.2}[act]
    assert np.linalg.norm(y - exact) <= bound * np.linalg.norm(exact)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("shape", [(K,), (1, K), (2, 3, K), (2, 1, 3, K)])
def test_leading_axes(rng, act, shape):
    x, w, bias = operands(rng, "everything", shape)
    ours = linear(x, w, bias, act=act, implementation="xla")
    assert ours.shape == (*shape[:-1], N)
    oracle = linear(x, w, bias, act=act, implementation="reference")
    assert np.abs(np.asarray(ours - oracle)).max() <= tolerance(x, w, bias, act)


@pytest.mark.parametrize("act", ACTS)
def test_a_video_does_not_see_its_neighbours_in_a_batch(rng, act):
    x, w, bias = operands(rng, "everything", (3, 5, K))
    x = x * jnp.array([1.0, 100.0, 0.01])[:, None, None]
    alone = jnp.stack([linear(each, w, bias, act=act) for each in x])
    np.testing.assert_allclose(linear(x, w, bias, act=act), alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("m", "k", "n"), [(1, 16, 1), (3, 48, 7), (17, 144, 33)])
@pytest.mark.parametrize("act", ACTS)
def test_odd_shapes(rng, m, k, n, act):
    x = jnp.asarray(rng.standard_normal((m, k)), jnp.float32)
    for make in (quantize_nvfp4, quantize_int8):
        w = make(jnp.asarray(rng.standard_normal((n, k)), jnp.float32))
        bias = jnp.zeros(n)
        ours, oracle = (linear(x, w, bias, act=act, implementation=name) for name in ("xla", "reference"))
        assert np.abs(np.asarray(ours - oracle)).max() <= tolerance(x, w, bias, act)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("weight", ["nvfp4", "int8, groups", "everything"])
def test_jit_vmap_and_eval_shape(rng, weight, act):
    x, w, bias = operands(rng, weight, (3, 5, K))
    run = functools.partial(linear, act=act)
    expected = run(x, w, bias)
    np.testing.assert_allclose(jax.jit(run)(x, w, bias), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(jax.vmap(run, (0, None, None))(x, w, bias), expected, rtol=1e-4, atol=1e-4)
    assert jax.eval_shape(run, x, w, bias).shape == expected.shape


@pytest.mark.parametrize("act", ACTS)
def test_gradients_pass_straight_through(rng, act):
    x, w, bias = operands(rng, "everything")
    dx, db = jax.grad(lambda x, b: linear(x, w, b, act=act).sum(), argnums=(0, 1))(x, bias)
    np.testing.assert_allclose(dx[0], effective_weight(w).sum(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(db, 5.0)


def test_stacked_weights_scan_and_switch(rng):
    """What the model does: layers on the leading axis of every part of the pytree, a route chosen per layer."""
    parts = [operands(rng, "everything", (5, K))[1:] for _ in range(3)]
    x = operands(rng, "everything")[0]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    routes = (Route(), Route("int8"), Route("nvfp4"))

    @jax.jit
    def run(x, stacked, indices):
        step = lambda total, xs: (total + routed_linear(x, *xs[0], routes, xs[1]), None)
        return jax.lax.scan(step, jnp.zeros((5, N)), (stacked, indices))[0]

    expected = sum(linear(x, w, b, act=route.act) for (w, b), route in zip(parts, routes, strict=True))
    np.testing.assert_allclose(run(x, stacked, jnp.arange(3)), expected, rtol=1e-4, atol=1e-3)


def test_a_dense_weight_keeps_its_dtype_under_every_route(rng):
    x, w = jnp.ones((2, 8)), jnp.ones((3, 8))
    routes = (Route("int8"), Route("nvfp4"))
    run = lambda index: routed_linear(x, w, None, routes, index)
    np.testing.assert_array_equal(run(jnp.int32(1)), 8.0)
    assert "cond" not in str(jax.make_jaxpr(run)(jnp.int32(0)))


def steps_over_layers(act):
    """Steps around layers, as the sampler has them; the weights are the same at every step."""

    def run(x, stacked):
        layer = lambda x, w: (jnp.tanh(linear(x, w, act=act)), None)
        step = lambda x, _: (jax.lax.scan(layer, x, stacked)[0], None)
        return jax.lax.scan(step, x, length=4)[0]

    return run


def made_outside_loops(act, layers, size=256):
    """Types of the arrays with a value per weight that the compiled program computes before its loops."""
    stacked = jax.vmap(quantize_nvfp4)(jnp.ones((layers, size, size)))
    text = jax.jit(steps_over_layers(act)).lower(jnp.ones((4, size), jnp.bfloat16), stacked).compile().as_text()
    entry = text[text.index("\nENTRY") :]
    made = re.findall(r"= (\w+)\[([\d,]+)\]\S* (?!parameter)", entry)
    return [kind for kind, dims in made if np.prod([int(d) for d in dims.split(",")]) >= size * size]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("layers", [1, 3])
def test_expanded_weights_stay_inside_the_loop(act, layers):
    """XLA moves what does not change out of loops. With one layer nothing but the barrier keeps it from doing so."""
    assert not made_outside_loops(act, layers)


def test_without_the_barrier_they_would_leave_it(monkeypatch):
    """The test above can fail."""
    monkeypatch.setattr(jax.lax, "optimization_barrier", lambda operands: operands)
    assert made_outside_loops("int8", 1)


def test_scales_that_do_not_nest_are_refused_by_name(rng):
    x = jnp.asarray(rng.standard_normal((2, 96)), jnp.float32)
    w = QuantizedWeight(quantize_int8(jnp.asarray(rng.standard_normal((3, 96)), jnp.float32), group=32), act_group=48)
    with pytest.raises(UnsupportedError, match="a row of k=96 has 3 scales on one side and 2 on the other"):
        linear(x, w, act="int8", implementation="xla")
    assert explain(x, w, act="int8").name == "reference"
    assert explain(x, w).name == "xla"


def test_unknown_activations_name_the_nearest():
    with pytest.raises(ValueError, match='unknown activation format "int5"; did you mean "int8"'):
        linear(jnp.ones((2, 16)), quantize_int8(jnp.ones((3, 16))), act="int5")


def test_stacked_weights_are_refused():
    with pytest.raises(ValueError, match=r"w has shape \(5, 3, 16\), expected \(n, k\); scan over stacked layers"):
        linear(jnp.ones((2, 16)), quantize_int8(jnp.ones((5, 3, 16))))
