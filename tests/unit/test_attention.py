"""`attention`: implementations against float64, key padding, blocks of queries, worded refusal."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import hopper
from sixbit_jax.attention import Before, attention, explain, side_by_side, xla
from sixbit_jax.dispatch import UnsupportedError
from sixbit_jax.models.norms import rms_norm
from sixbit_jax.models.rope import rope_table, rotate


def operands(rng, queries=9, keys=13, dtype=jnp.float32):
    make = lambda tokens: jnp.asarray(rng.standard_normal((2, tokens, 3, 16)), dtype)
    return make(queries), make(keys), make(keys)


def exact(q, k, v, valid):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k[:, :valid], v[:, :valid]))
    scores = np.einsum("bqac,bkac->baqk", q, k) / 4.0
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("baqk,bkac->bqac", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("name", ["xla", "reference"])
@pytest.mark.parametrize("valid", [None, 1, 7, 13])
def test_f32_equals_float64(rng, name, valid):
    q, k, v = operands(rng)
    y = attention(q, k, v, valid_keys=valid, implementation=name)
    np.testing.assert_allclose(y, exact(q, k, v, valid), atol=5e-6, rtol=0)


@pytest.mark.parametrize(("name", "width"), [("xla", 16), ("reference", 16), ("int8", 128), ("int8_pv16", 128)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_lies_side_by_side_is_what_is_cut_out(rng, name, width, dtype):
    qkv = jnp.asarray(rng.standard_normal((2, 40, 3 * 2 * width)), dtype)
    cos, sin = rope_table((1, 8, 5), width)
    before = Before(jnp.full(2 * width, 1.5), jnp.full(2 * width, 0.5), (jnp.asarray(cos), jnp.asarray(sin)))
    run = jax.jit(functools.partial(attention, valid_keys=37, before=before, implementation=name))
    cut_out = (x.reshape(2, 40, 2, width) for x in jnp.split(qkv, 3, axis=-1))
    np.testing.assert_array_equal(run(*side_by_side(qkv, 3, heads=2)), run(*cut_out))


def test_columns_that_are_no_heads_are_refused():
    for parts, heads in ((3, 3), (5, 2)):
        with pytest.raises(ValueError, match=f"24 columns are not {parts} parts of {heads} heads each"):
            side_by_side(jnp.ones((1, 4, 24)), parts, heads)


def test_padding_is_never_seen(rng):
    q, k, v = operands(rng)
    poison = k.at[:, 7:].set(jnp.nan), v.at[:, 7:].set(jnp.nan)
    np.testing.assert_array_equal(attention(q, *poison, valid_keys=7), attention(q, k, v, valid_keys=7))


@pytest.mark.parametrize("score_bytes", [1, 300, 1000, 10**9])
def test_blocks_of_queries_change_nothing(rng, monkeypatch, score_bytes):
    monkeypatch.setattr(xla, "SCORE_BYTES", score_bytes)
    q, k, v = operands(rng, queries=11)
    np.testing.assert_allclose(attention(q, k, v, valid_keys=12), exact(q, k, v, 12), atol=5e-6, rtol=0)


def test_score_memory_is_bounded():
    """8192 x 8192 scores of two heads are 512 MiB in f32; blocks keep the program's scratch to a fraction."""
    q = jax.ShapeDtypeStruct((1, 8192, 2, 16), jnp.float32)
    memory = jax.jit(lambda q: attention(q, q, q)).lower(q).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1.5 * 2 * xla.SCORE_BYTES
    assert memory.temp_size_in_bytes < 2 * 8192 * 8192 * 4 * 1.5


def test_cudnn_says_why_it_does_not_run_here(rng):
    q, k, v = operands(rng)
    if jax.default_backend() == "gpu":
        with pytest.raises(UnsupportedError, match="bfloat16 or float16"):
            attention(q, k, v, implementation="cudnn")
    else:
        with pytest.raises(UnsupportedError, match="needs an NVIDIA GPU"):
            attention(q, k, v, implementation="cudnn")
    assert explain(q, k).rejected[0][0] == "cudnn"


@pytest.mark.parametrize(("name", "dtype"), [("xla", "float32"), ("int8", "float32"), ("int8", "bfloat16")])
@pytest.mark.parametrize("parts", ["q_norm", "norms", "norms and rope"])
def test_queries_and_keys_are_normed_and_rotated_first(rng, name, dtype, parts):
    q, k, v = (jnp.asarray(rng.standard_normal((1, 60, 2, 128)), dtype) for _ in range(3))
    factors = [jnp.asarray(rng.uniform(0.5, 2, 256), jnp.float32) for _ in range(2)]
    tables = tuple(jnp.asarray(np.pad(table, ((0, 3), (0, 0)))) for table in rope_table((3, 1, 19), 128))
    before = {
        "q_norm": Before(factors[0]),
        "norms": Before(*factors),
        "norms and rope": Before(*factors, tables),
    }[parts]
    out = jax.jit(functools.partial(attention, valid_keys=57, before=before, implementation=name))(q, k, v)
    normed = lambda x, factor: rms_norm(x.reshape(1, 60, 256), 1e-6, factor).reshape(x.shape)
    q, k = normed(q, factors[0]), k if parts == "q_norm" else normed(k, factors[1])
    if before.rope is not None:
        q, k = rotate(q, *tables), rotate(k, *tables)
    expected = attention(q.astype(dtype), k.astype(dtype), v, valid_keys=57, implementation="reference")
    out, expected = (np.asarray(x[:, :57], np.float64) for x in (out, expected))
    assert np.linalg.norm(out - expected) < (0.016 if name == "int8" else 1e-6) * np.linalg.norm(expected)


@pytest.mark.parametrize(("name", "bound"), [("int8", 0.044), ("int8_pv16", 0.014)])
def test_int8_runs_anywhere_when_named(rng, name, bound):
    """Noise, the worst case: the rounding of Q and K, and of the weights and V where they have 8 bits."""
    q, k, v = (jnp.asarray(rng.standard_normal((1, tokens, 2, 128)), jnp.float32) for tokens in (8, 1100, 1100))
    expected = attention(q, k, v, valid_keys=1090, implementation="reference")
    out = jax.jit(functools.partial(attention, valid_keys=1090, implementation=name))(q, k, v)
    assert float(jnp.linalg.norm(out - expected) / jnp.linalg.norm(expected)) < bound
    assert explain(q, k).name == "xla"


def test_int8_says_what_it_needs(rng):
    with pytest.raises(UnsupportedError, match="head dimension of 128, not 16"):
        attention(*operands(rng), implementation="int8")


@pytest.mark.parametrize(
    ("platform", "capability", "reason"),
    [("gpu", "9.0", None), ("gpu", "8.0", "this one has compute capability 8.0"), ("cpu", "8.0", None)],
)
def test_int8_wants_a_hopper_gpu_or_none(monkeypatch, platform, capability, reason):
    monkeypatch.setattr(hopper, "capability", lambda: capability)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    q = jax.ShapeDtypeStruct((1, 6, 2, 128), jnp.bfloat16)
    if reason is None:
        assert explain(q, q, implementation="int8").name == "int8"
    else:
        with pytest.raises(UnsupportedError, match=reason):
            explain(q, q, implementation="int8")


def test_impossible_key_counts_are_refused(rng):
    q, k, v = operands(rng)
    with pytest.raises(ValueError, match=r"valid_keys=14 is not within 1\.\.13"):
        attention(q, k, v, valid_keys=14)


def test_of_several_names_the_first_that_can_runs_and_the_reasons_are_told():
    """What the recipe `fast` relies on where its kernel does not run."""
    q = jax.ShapeDtypeStruct((1, 6, 2, 8), jnp.float32)
    choice = explain(q, q, implementation=("int8", "cudnn", "xla"))
    assert choice.name == "xla"
    assert [name for name, _ in choice.rejected] == ["int8", "cudnn"]
    assert "takes a head dimension of 128, not 8" in str(choice)
    x = jax.random.normal(jax.random.key(0), q.shape)
    np.testing.assert_array_equal(
        attention(x, x, x, implementation=("int8", "xla")), attention(x, x, x, implementation="xla")
    )
    with pytest.raises(NotImplementedError, match="no implementation for"):
        attention(x, x, x, implementation=("int8", "cudnn"))
