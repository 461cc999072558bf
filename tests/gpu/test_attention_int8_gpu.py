"""The attention kernel on a Hopper GPU: against its emulation, and float64; every element written; the same twice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.kernels import attention_prologue
from pallas_kernels.attention_int8 import (
    AttentionConfig,
    Before,
    attention_bf16,
    attention_int8,
    emulation,
    operands,
    prologue,
)
from pallas_kernels.attention_int8.config import choose_config
from pallas_kernels.mosaic import in_eights

pytestmark = pytest.mark.gpu

VARIANTS = {
    "int8": attention_int8,
    "int8, bf16 V": functools.partial(attention_int8, pv="bf16"),
    "int8, f16 V": functools.partial(attention_int8, pv="f16"),
    "bf16": attention_bf16,
}
KINDS = {
    "int8": ("s8", "e4m3"),
    "int8, bf16 V": ("s8", "bf16"),
    "int8, f16 V": ("s8", "f16"),
    "bf16": ("bf16", "bf16"),
}
# Both make the same codes. What differs: a product of fp8 keeps 13 bits of a sum, exp2 is approximate, a code may round
# the other way; and the output is rounded to bf16 (2^-9 at most).
KERNEL_ERROR = {"int8": 0.01, "int8, bf16 V": 0.005, "int8, f16 V": 0.005, "bf16": 0.005}
SHAPES = [(1000, 1900, 1837), (4680, 4680, 4680), (129, 512, 512), (64, 100, 33), (2100, 225, 225)]


@pytest.fixture(autouse=True)
def hopper():
    if jax.devices()[0].compute_capability != "9.0":
        pytest.skip("needs a Hopper GPU")


def random(rng, queries, keys, heads=3, batch=2):
    make = lambda tokens: jnp.asarray(rng.standard_normal((batch, tokens, heads, 128)), jnp.bfloat16)
    return make(queries), make(keys), make(keys)


def emulate(name, q, k, v, valid):
    """The emulation on this GPU, with the configuration the kernel takes."""
    config = choose_config(q.shape[1], valid, q.shape[2], kinds=KINDS[name], kind=jax.devices()[0].device_kind)
    if name == "bf16":
        x = operands.as_bf16(q, k, v, Before(), config=config)
    else:
        x = operands.quantize(q, k, v, Before(), valid_keys=valid, pv=KINDS[name][1], config=config)
    x = x._replace(q=in_eights(x.q, axis=1))
    static = dict(heads=q.shape[2], queries=x.q.shape[1], valid_keys=valid, config=config, with_lse=False)
    return emulation.run(x, **static)[0][:, : q.shape[1]]


def error(actual, expected):
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def poison(shape):
    """Leave NaNs where the next array of this shape will lie."""
    jax.block_until_ready(jnp.full(shape, jnp.nan, jnp.bfloat16)).delete()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("queries", "keys", "valid"), SHAPES)
def test_kernel_matches_its_emulation(rng, name, queries, keys, valid):
    q, k, v = random(rng, queries, keys)
    expected = emulate(name, q, k, v, valid)
    run = jax.jit(functools.partial(VARIANTS[name], valid_keys=valid))
    jax.block_until_ready(run(q, k, v))
    poison(q.shape)
    first, second = run(q, k, v), run(q, k, v)
    assert bool(jnp.isfinite(first).all())
    assert bool((first == second).all())
    assert error(first, expected) < KERNEL_ERROR[name]


@pytest.mark.parametrize(
    "config",
    [
        AttentionConfig(block_kv=kv, stages=stages, cluster=cluster, linear=linear, turns=turns, tail=tail)
        for kv, stages, cluster, linear, turns, tail in (
            (224, 3, 2, 4, True, 2),
            (224, 2, 1, 2, False, 0),
            (192, 3, 2, 0, True, 1),
            (128, 3, 1, 3, True, 3),
        )
    ],
    ids=str,
)
def test_configurations_change_only_rounding(rng, config):
    q, k, v = random(rng, 3000, 5000)
    expected = attention_bf16(q, k, v)
    assert error(attention_int8(q, k, v, config=config), expected) < 0.044


@pytest.mark.parametrize("name", VARIANTS)
def test_log_sum_exp(rng, name):
    q, k, v = random(rng, 700, 900, batch=1)
    _, lse = VARIANTS[name](q, k, v, valid_keys=890, return_lse=True)
    scores = jnp.einsum("bqac,bkac->baqk", q.astype(jnp.float32), k[:, :890].astype(jnp.float32), precision="highest")
    np.testing.assert_allclose(lse, jax.nn.logsumexp(scores * 128**-0.5, axis=-1), atol=0.03)


@pytest.mark.parametrize("hard", ["huge channel", "constant keys", "peaked rows", "constant values"])
def test_hard_inputs(rng, hard):
    q, k, v = random(rng, 1024, 4096)
    if hard == "huge channel":
        k = k.at[..., 5].add(200.0)
    if hard == "constant keys":
        k = jnp.broadcast_to(k[:, :1], k.shape)
    if hard == "peaked rows":
        q = 8 * k[:, :1024]
    if hard == "constant values":  # sums that only grow: where few bits of them show
        v = jnp.broadcast_to(v[:, :1], v.shape)
    expected = np.asarray(attention_bf16(q, k, v), np.float64)
    narrow, *wide = (np.asarray(attention_int8(q, k, v, pv=pv), np.float64) for pv in ("e4m3", "bf16", "f16"))
    for out in (narrow, *wide):
        assert (out * expected).sum() / np.linalg.norm(out) / np.linalg.norm(expected) > 0.999
    assert max(error(out, expected) for out in wide) < 0.02
    assert error(narrow, expected) < 0.044


@pytest.mark.parametrize("has_before", [True, False])
def test_fused_prologue(rng, has_before):
    """Its own kernels against XLA's: codes at most one apart, angles being in f16; the same twice."""
    case = attention_prologue.Case("", 12, 4680)
    q, k, v, before = attention_prologue.random_operands(case)
    before = before if has_before else Before()
    static = dict(valid_keys=4677, pv="e4m3", config=AttentionConfig())
    ours, theirs = (functools.partial(f.quantize, **static) for f in (prologue, operands))
    poison(q.shape)
    first, second, expected = (jax.jit(f)(q, k, v, before) for f in (ours, ours, theirs))
    assert attention_prologue.differing_codes(first, expected) < 0.03
    np.testing.assert_allclose(first.q_scale[:, :4680], expected.q_scale[:, :4680], rtol=1e-3)
    np.testing.assert_allclose(first.k_scale, expected.k_scale, rtol=1e-3)
    np.testing.assert_allclose(first.v_scale, expected.v_scale, rtol=1e-6)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))


def test_attention_with_its_fused_prologue(rng):
    q, k, v = random(rng, 1001, 1900)
    plain = attention_int8(q, k, v, valid_keys=1837, pv="bf16")
    fused = attention_int8(q, k, v, valid_keys=1837, pv="bf16", prologue="fused")
    # A code in a few hundred is one step off: far below the roundings themselves.
    assert error(fused, np.asarray(plain, np.float64)) < 0.004
