"""INT8 attention: its emulation against float64, padding, hard inputs, refusals, and the kernel's lowering."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from benchmarks.kernels import attention_int8 as benchmark
from pallas_kernels.attention_int8 import AttentionConfig, attention_bf16, attention_int8, emulation, operands
from pallas_kernels.attention_int8.config import choose_config
from pallas_kernels.attention_int8.numbers import GROUP, place_of

# One program a case: by itself every operation would be one.
STATIC = ("valid_keys", "return_lse", "config")
jitted = jax.jit(attention_int8, static_argnames=(*STATIC, "pv", "prologue", "rotate"))
VARIANTS = {
    "int8": jitted,
    "int8, bf16 V": functools.partial(jitted, pv="bf16"),
    "int8, f16 V": functools.partial(jitted, pv="f16"),
    "bf16": jax.jit(attention_bf16, static_argnames=STATIC),
}
# Noise is the worst case: nothing averages out. rms of rounding, in per cent: Q and K to 7 bits 1.2 together at scores
# of unit variance, V to e4m3 2.6, its weights 2.7, or 3.2 interpolated; bf16 operands and weights 0.2, f16 weights
# by parabola 0.2.
NOISE_ERROR = {"int8": 0.044, "int8, bf16 V": 0.014, "int8, f16 V": 0.014, "bf16": 0.004}


def random(rng, queries=70, keys=300, batch=1, heads=2):
    make = lambda tokens: jnp.asarray(rng.standard_normal((batch, tokens, heads, 128)), jnp.bfloat16)
    return make(queries), make(keys), make(keys)


def exact(q, k, v, valid=None):
    """(softmax·V, log-sum-exp) in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k[:, :valid], v[:, :valid]))
    scores = np.einsum("bqac,bkac->baqk", q, k) * 128**-0.5
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    return np.einsum("baqk,bkac->bqac", weights / total, v), (top + np.log(total))[..., 0]


def error(actual, expected):
    return np.linalg.norm(np.asarray(actual, np.float64) - expected) / np.linalg.norm(expected)


def cosine(actual, expected):
    actual = np.asarray(actual, np.float64)
    return (actual * expected).sum() / np.linalg.norm(actual) / np.linalg.norm(expected)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("valid", [300, 287, 224, 17])
def test_emulation_is_attention_but_for_rounding(rng, name, valid):
    q, k, v = random(rng, batch=2)
    out, lse = VARIANTS[name](q, k, v, valid_keys=valid, return_lse=True)
    expected, expected_lse = exact(q, k, v, valid)
    assert error(out, expected) < NOISE_ERROR[name]
    # A sum of exponentials averages its terms' errors; few keys do so least.
    np.testing.assert_allclose(lse, expected_lse, atol=1e-5 if name == "bf16" else 0.03)


@pytest.mark.parametrize("name", VARIANTS)
def test_one_key_is_its_value(rng, name):
    q, k, v = random(rng)
    out = VARIANTS[name](q, k, v, valid_keys=1)
    np.testing.assert_allclose(out, jnp.broadcast_to(v[:, :1], out.shape), rtol=2**-8)


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_is_never_seen(rng, name):
    q, k, v = random(rng)
    poison = k.at[:, 250:].set(jnp.nan), v.at[:, 250:].set(jnp.nan)
    if name == "bf16":  # the one that reads padding as it is, and masks scores
        poison = k.at[:, 250:].set(100.0), v.at[:, 250:].set(100.0)
    run = functools.partial(VARIANTS[name], valid_keys=250)
    np.testing.assert_array_equal(run(q, *poison), run(q, k, v))


def huge_channel(q, k, v):
    return q, k.at[..., 5].add(200.0), v


def constant_keys(q, k, v):
    return q, jnp.broadcast_to(k[:, :1], k.shape), v


def peaked_rows(q, k, v):
    """Every query is one key eight times over: its weight is all but 1."""
    return 8 * k[:, jnp.arange(q.shape[1]) % k.shape[1]], k, v


@pytest.mark.parametrize("make", [huge_channel, constant_keys, peaked_rows])
@pytest.mark.parametrize("name", ["int8", "int8, bf16 V", "int8, f16 V"])
def test_hard_inputs(rng, make, name):
    """Smoothing keeps what one huge channel would drown; what is left is the rounding of V."""
    q, k, v = make(*random(rng))
    out = VARIANTS[name](q, k, v)
    expected, _ = exact(q, k, v)
    assert cosine(out, expected) > 0.999
    assert error(out, expected) < (NOISE_ERROR["int8"] if name == "int8" else 0.02)


def test_values_far_from_zero_are_rounded_by_what_differs(rng):
    """Their mean is taken out and added back: without that, e4m3 rounds values of 10 by 0.26 rms."""
    q, k, v = peaked_rows(*random(rng))
    v = v + jnp.asarray(10, v.dtype)
    expected, _ = exact(q, k, v)
    difference = np.asarray(jitted(q, k, v), np.float64) - expected
    assert np.sqrt((difference**2).mean()) < 0.05


@pytest.mark.parametrize("prologue", ["xla", "fused"])
def test_rotated_queries_and_keys_share_out_large_channels(rng, prologue):
    """Four channels of K twelve times the others, where Q has next to nothing: their range would cost the others."""
    q, k, v = random(rng, keys=320)
    k, q = k.at[..., ::32].multiply(12), q.at[..., ::32].multiply(1 / 12)
    expected, expected_lse = exact(q, k, v, 317)
    run = functools.partial(jitted, q, k, v, pv="bf16", prologue=prologue, valid_keys=317, return_lse=True)
    (plain, _), (rotated, lse) = run(), run(rotate=True)
    assert error(rotated, expected) < 0.5 * error(plain, expected)
    np.testing.assert_allclose(lse, expected_lse, atol=0.03)


def test_a_rotation_leaves_noise_and_its_dtype_as_they_were(rng):
    q, k, v = random(rng)
    out = jitted(q.astype(jnp.float32), k, v, pv="bf16", rotate=True)
    assert out.dtype == jnp.float32
    assert error(out, exact(q, k, v)[0]) < NOISE_ERROR["int8, bf16 V"]


def test_zero_queries_average_the_values(rng):
    q, k, v = random(rng)
    expected, _ = exact(0 * q, k, v)
    assert error(jitted(0 * q, k, v, pv="bf16"), expected) < 0.005


def test_interpolated_weights_are_right_on_average():
    """Each within 6.2 % (half a step of the code) and 4.4 % (half the bulge) of exp2; the mean within 0.2 %."""
    logs = jnp.linspace(-5.0, 8.0, 60001)
    ratio = np.asarray(emulation._weights_8bit(logs[None, None], linear=4)[0, 0], np.float64) / np.exp2(logs)
    assert np.abs(ratio - 1).max() < 0.062 + 0.045
    assert abs(ratio.mean() - 1) < 0.002


def test_parabola_is_exp2():
    """0.2 % rms about a mean that dividing by the sum takes away; what vanishes vanishes, and never overflows."""
    logs = jnp.linspace(-12.0, 0.0, 60001)
    ratio = np.asarray(emulation._weights_f16(logs), np.float64) / np.exp2(logs)
    assert ratio.std() / ratio.mean() < 0.0025
    assert abs(ratio.mean() - 1) < 0.006
    np.testing.assert_allclose(emulation._weights_f16(jnp.array([-1e30, -40.0, 0.0])), [0, 0, 1], atol=2e-3)


def test_e4m3_codes_read_as_logarithms():
    """Exponent and mantissa bits together are 8 (log2 + 7), where the mantissa is 0."""
    codes = np.arange(8, 127, 8, dtype=np.uint8)
    np.testing.assert_array_equal(8 * (np.log2(codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64)) + 7), codes)


def test_values_are_permuted_within_their_group():
    assert sorted(map(place_of, range(GROUP))) == list(range(GROUP))
    permuted = operands.permute_values(jnp.arange(48)[None])[0]
    assert [permuted[GROUP * group + place_of(key)] for group in range(3) for key in range(GROUP)] == list(range(48))


@pytest.mark.parametrize("block_kv", [128, 192, 224])
def test_blocks_change_only_rounding(rng, block_kv):
    q, k, v = random(rng, keys=500)
    config = AttentionConfig(block_kv=block_kv)
    one, other = (jitted(q, k, v, pv="bf16", config=c) for c in (config, AttentionConfig(block_kv=256)))
    assert error(one, np.asarray(other, np.float64)) < 0.01


def test_vmap_runs_the_batch(rng):
    q, k, v = random(rng, batch=2)
    batched = jax.vmap(attention_int8)(q[:, None], k[:, None], v[:, None])
    # One member at a time, whose sums XLA may order otherwise; then one rounding to bf16.
    np.testing.assert_allclose(batched[:, 0].astype(jnp.float32), attention_int8(q, k, v), rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize("case", benchmark.cases(), ids=lambda case: f"{case.name} {case.variant}")
def test_lowers_for_cuda_at_every_benchmark_shape(case):
    kinds = benchmark.KINDS[case.variant]
    config = choose_config(case.queries, case.keys, case.heads, kinds=kinds, kind="NVIDIA H200")
    lower(case, config)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_candidate_lowers(variant):
    for keys in (32760, 512):
        case = benchmark.Case("", 12, 32760, keys, variant)
        for config in benchmark.candidates(case):
            lower(case, config)


def lower(case, config):
    avals = jax.eval_shape(lambda: benchmark.random_operands(case))
    prepared = jax.eval_shape(functools.partial(benchmark.prepare, case, config=config), *avals)
    kernel = functools.partial(benchmark.run_kernel, case, config=config)
    assert "mosaic_gpu" in jax.jit(kernel).trace(*prepared).lower(lowering_platforms=("cuda",)).as_text()


def test_whole_call_lowers_with_its_log_sum_exp():
    q, k = (jax.ShapeDtypeStruct((2, tokens, 12, 128), jnp.bfloat16) for tokens in (4683, 4801))
    run = jax.jit(functools.partial(attention_int8, valid_keys=4680, return_lse=True))
    assert "mosaic_gpu" in run.trace(q, k, k).lower(lowering_platforms=("cuda",)).as_text()


def test_many_values_on_a_grid_keep_their_mean(rng):
    """bf16 values rounded to e4m3: what the roundings leave of a mean is added back (5 % of such an output if not)."""
    q, k, v = random(rng, queries=16, keys=32768, heads=1)
    expected, _ = exact(0 * q, k, v)
    left = np.asarray(jitted(0 * q, k, v), np.float64) - expected
    assert np.linalg.norm(left) < 0.01 * np.linalg.norm(expected)


Q = jnp.ones((1, 4, 2, 128), jnp.bfloat16)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(q=Q.astype(jnp.int8)), "q is int8"),
        (dict(q=Q[0]), "q has shape"),
        (dict(q=Q[:, :0]), "q is empty"),
        (dict(k=Q[:, :0], v=Q[:, :0]), "k is empty"),
        (dict(q=Q[..., :64]), "q has head dimension 64"),
        (dict(k=Q[:, :, :1]), "k has shape"),
        (dict(v=Q[:, :3]), "v has shape"),
        (dict(valid_keys=0), "valid_keys = 0"),
        (dict(valid_keys=5), "valid_keys = 5"),
        (dict(pv="int8"), 'pv is "int8"'),
        (dict(config=AttentionConfig(block_kv=100)), "config.block_kv = 100"),
        (dict(config=AttentionConfig(block_kv=288)), "config.block_kv = 288"),
        (dict(config=AttentionConfig(cluster=4)), "cluster 4"),
        (dict(config=AttentionConfig(linear=5)), "linear 5"),
        (dict(config=AttentionConfig(promote=-1)), "config.promote = -1"),
    ],
)
def test_bad_arguments_are_named(changes, named):
    values = dict(q=Q, k=Q, v=Q) | changes
    with pytest.raises((TypeError, ValueError), match=named):
        attention_int8(values.pop("q"), values.pop("k"), values.pop("v"), **values)
