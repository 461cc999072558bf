"""`linear`: implementations against the oracle, named choice, worded refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.dispatch import UnsupportedError
from sixbit_jax.formats import quantize_int8
from sixbit_jax.linear import (
    Added,
    Gelu,
    LayerNorm,
    explain,
    implementations,
    linear,
    measured_linear,
    routed_linear,
)
from sixbit_jax.linear.after import added, check_after
from sixbit_jax.linear.api import linear_and_magnitudes
from sixbit_jax.linear.before import applied, check_before
from sixbit_jax.linear.magnitude import magnitudes, outlier_ratio, ratios
from sixbit_jax.routes import Route


def operands(rng, shape=(3, 5, 48), n=7, dtype=jnp.float32):
    x = jnp.asarray(rng.standard_normal(shape), dtype)
    w, bias = jnp.asarray(rng.standard_normal((n, shape[-1])), dtype), jnp.asarray(rng.standard_normal(n), dtype)
    return x, w, bias


# Those that take two plain arrays anywhere.
DENSE = [name for name in implementations() if name != "pallas"]


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("shape", [(48,), (1, 48), (3, 5, 48)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_f32_equals_float64(rng, name, shape, with_bias):
    x, w, bias = operands(rng, shape)
    y = linear(x, w, bias if with_bias else None, implementation=name)
    expected = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T + (
        np.asarray(bias, np.float64) if with_bias else 0
    )
    # 48 products of unit normals, each rounded to 2**-24: far below 1e-5 of values around 7.
    np.testing.assert_allclose(y, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", DENSE)
def test_bf16_rounds_at_most_twice(rng, name):
    """Accumulation is f32: the error is that of rounding the product and the sum to bf16, 2**-8 of their size each."""
    x, w, bias = operands(rng, dtype=jnp.bfloat16)
    y = linear(x, w, bias, implementation=name)
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    bound = 2.0**-8 * (np.abs(exact) + np.abs(exact + np.asarray(bias, np.float64))) + 1e-6
    assert y.dtype == jnp.bfloat16
    assert (np.abs(np.asarray(y, np.float64) - exact - np.asarray(bias, np.float64)) <= bound).all()


def test_unknown_implementation_names_the_nearest(rng):
    with pytest.raises(ValueError, match='did you mean "reference"'):
        linear(*operands(rng), implementation="referense")


def test_named_implementation_runs_or_says_why_not(rng):
    x, w, bias = operands(rng)
    with pytest.raises(UnsupportedError, match="cast one of them"):
        linear(x.astype(jnp.bfloat16), w, bias, implementation="xla")
    with pytest.raises(UnsupportedError, match="quantized weight"):
        linear(x, w, act="int8")


def test_mixed_dtypes_fall_to_the_oracle_and_say_so(rng):
    x, w, _ = operands(rng)
    choice = explain(x.astype(jnp.bfloat16), w)
    assert choice.name == "reference"
    assert "not xla" in str(choice)


def test_wrong_inner_size_is_named(rng):
    x, w, _ = operands(rng)
    with pytest.raises(ValueError, match=r"\(.*48\) does not end in 47 features"):
        linear(x, w[:, :47])


def test_routed_linear_takes_the_route_of_the_index(rng):
    x, w, bias = operands(rng)
    routes = (Route(), Route(implementation="reference"))
    run = jax.jit(lambda index: routed_linear(x, w, bias, routes, index))
    for index in range(2):
        np.testing.assert_allclose(run(jnp.int32(index)), linear(x, w, bias), atol=1e-5, rtol=0)
    assert "cond" in str(jax.make_jaxpr(lambda i: routed_linear(x, w, bias, routes, i))(jnp.int32(0)))
    assert "cond" not in str(jax.make_jaxpr(lambda i: routed_linear(x, w, bias, routes[:1], i))(jnp.int32(0)))


def befores(rng, x):
    """GELU, a norm with its weights, and one modulated by each row of a batch."""
    vectors = lambda *shape: (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    each = (*x.shape[:1], *[1] * (x.ndim - 2), x.shape[-1])
    return {"gelu": Gelu(), "norm": LayerNorm(*vectors(x.shape[-1])), "modulated": LayerNorm(*vectors(*each), eps=1e-5)}


@pytest.mark.parametrize("name", ["gelu", "norm", "modulated"])
@pytest.mark.parametrize("weight", [lambda w: w, quantize_int8], ids=["dense", "int8"])
def test_what_comes_before_comes_first(rng, weight, name):
    """In values, in what is measured and in gradients, those of a norm's factors too."""
    x, w, bias = operands(rng)
    w, before = weight(w), befores(rng, x)[name]
    after = lambda before, x: linear(applied(before, x), w, bias)
    fused = lambda before, x: linear(x, w, bias, before=before)
    np.testing.assert_allclose(fused(before, x), after(before, x), atol=1e-5, rtol=0)
    losses = [lambda before, x, run=run: jnp.sum(run(before, x) ** 2) for run in (fused, after)]
    gradients = [jax.tree.leaves(jax.grad(loss, argnums=(0, 1))(before, x)) for loss in losses]
    assert len(gradients[0]) == (1 if name == "gelu" else 3)
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())
    y, ratio = measured_linear(x, w, bias, before=before)
    np.testing.assert_allclose(y, after(before, x), atol=1e-5, rtol=0)
    np.testing.assert_allclose(ratio, outlier_ratio(applied(before, x)), rtol=1e-5)


def afters(rng, dtype=jnp.float32):
    """To a residual alone, through a gate, and through one of each row of a batch; for the products of `operands`."""
    residual = jnp.asarray(rng.standard_normal((3, 5, 7)), dtype)
    gate = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {"added": Added(residual), "gated": Added(residual, gate(7)), "by video": Added(residual, gate(3, 1, 7))}


@pytest.mark.parametrize("name", ["added", "gated", "by video"])
@pytest.mark.parametrize("weight", [lambda w: w, quantize_int8], ids=["dense", "int8"])
def test_what_comes_after_comes_last(rng, weight, name):
    """In values, also beside what is measured, and in gradients, those of residual, gate and bias too."""
    x, w, bias = operands(rng)
    w, after = weight(w), afters(rng)[name]
    apart = lambda after, x, bias: added(after, linear(x, w, bias))
    fused = lambda after, x, bias: linear(x, w, bias, after=after)
    np.testing.assert_array_equal(fused(after, x, bias), apart(after, x, bias))
    np.testing.assert_array_equal(measured_linear(x, w, bias, after=after)[0], apart(after, x, bias))
    losses = [lambda after, x, bias, run=run: jnp.sum(run(after, x, bias) ** 2) for run in (fused, apart)]
    gradients = [jax.tree.leaves(jax.grad(loss, argnums=(0, 1, 2))(after, x, bias)) for loss in losses]
    assert len(gradients[0]) == (3 if name == "added" else 4)
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("name", ["added", "gated"])
def test_it_is_added_in_f32_to_a_rounded_product(rng, name):
    x, w, bias = operands(rng, dtype=jnp.bfloat16)
    after, y = afters(rng, jnp.bfloat16)[name], np.asarray(linear(x, w, bias), np.float32)
    gate = 1 if after.gate is None else np.asarray(after.gate)
    expected = jnp.asarray(np.asarray(after.residual, np.float32) + y * gate).astype(jnp.bfloat16)
    np.testing.assert_array_equal(linear(x, w, bias, after=after), expected)


@pytest.mark.parametrize("measured", [False, True])
def test_every_route_applies_them_itself(rng, measured):
    x, w, bias = operands(rng)
    w, before, after = quantize_int8(w), befores(rng, x)["modulated"], afters(rng)["by video"]
    routes = (Route("int8"), Route(None))
    run = jax.jit(lambda i: routed_linear(x, w, bias, routes, i, before=before, after=after, measured=measured))
    for index, route in enumerate(routes):
        product = linear_and_magnitudes if measured else linear
        expected = product(applied(before, x), w, bias, act=route.act, after=after)
        for ours, theirs in zip(jax.tree.leaves(run(jnp.int32(index))), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_what_cannot_come_before_is_named(rng):
    x, w, _ = operands(rng)
    with pytest.raises(TypeError, match="before is 'gelu', expected Gelu"):
        check_before("gelu", x)  # in these tests `linear`'s own annotation would be faster
    with pytest.raises(ValueError, match=r"before\.offset has shape \(47,\)"):
        linear(x, w, before=LayerNorm(jnp.ones(48), jnp.ones(47)))


@pytest.mark.parametrize(
    ("after", "named"),
    [
        (Added(jnp.ones((3, 5, 8))), r"after\.residual is float32 \(3, 5, 8\)"),
        (Added(jnp.ones((3, 5, 7), jnp.bfloat16)), r"after\.residual is bfloat16 .* must be float32"),
        (Added(jnp.ones((3, 5, 7)), jnp.ones(6)), r"after\.gate has shape \(6,\)"),
        (Added(jnp.ones((3, 5, 7)), jnp.ones((5, 7))), r"after\.gate has shape \(5, 7\)"),
    ],
)
def test_what_cannot_be_added_is_named(rng, after, named):
    with pytest.raises(ValueError, match=named):
        linear(*operands(rng), after=after)
    with pytest.raises(TypeError, match="after is 1, expected an Added"):
        check_after(1, *operands(rng)[:2])


def test_ratios_of_several_inputs_are_those_of_each(rng):
    inputs = {name: jnp.asarray(rng.normal(size=(3, 5, k)) * k, jnp.float32) for name, k in (("a", 16), ("b", 48))}
    found = ratios({name: (magnitudes(x), x.size) for name, x in inputs.items()})
    for name, x in inputs.items():
        np.testing.assert_allclose(found[name], np.abs(x).max() / np.abs(x).mean(), rtol=1e-6)


def test_measured_linear_is_linear_and_how_uneven_its_input_is(rng):
    x, w, bias = operands(rng)
    routes = (Route(), Route(implementation="reference"))
    for index, route in enumerate(routes):
        y, seen = jax.jit(lambda i: routed_linear(x, w, bias, routes, i, measured=True))(jnp.int32(index))
        np.testing.assert_allclose(y, linear(x, w, bias, implementation=route.implementation), atol=1e-5, rtol=0)
        np.testing.assert_allclose(seen.ratio(x.size), np.abs(x).max() / np.abs(x).mean(), rtol=1e-5)
