"""The prologue of INT8 attention: norm, rotation, smoothing, rounding and transposing, in kernels and in XLA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
from lane_products import product_of_lanes

from benchmarks.kernels import attention_prologue as benchmark
from pallas_kernels.attention_int8 import (
    AttentionConfig,
    Before,
    attention_int8,
    operands,
    prologue,
    prologue_registers,
    prologue_sm90,
)
from pallas_kernels.attention_int8.operands import Operands
from pallas_kernels.attention_int8.prologue_sm90 import Round
from pallas_kernels.columns import Columns, side_by_side
from pallas_kernels.quantize_rows.spec import signs
from sixbit_jax.models.norms import rms_norm
from sixbit_jax.models.rope import rope_table, rotate

HEADS, TOKENS, VALID = 5, 290, 283


@pytest.fixture
def qkv(rng):
    """With a channel of K far from zero, as real keys have."""
    make = lambda: jnp.asarray(rng.standard_normal((2, TOKENS, HEADS, 128)), jnp.bfloat16)
    return make(), make().at[..., 7].add(20.0), make()


@pytest.fixture
def before(rng):
    factors = [jnp.asarray(rng.uniform(0.5, 2, HEADS * 128), jnp.float32) for _ in range(2)]
    cos, sin = (jnp.asarray(table[:TOKENS]) for table in rope_table((3, 10, 10), 128))
    return Before(*factors, (cos, sin))


def beside_others(*parts):
    """The parts as columns of one array, with a head of NaN on either side."""
    nans = jnp.full_like(parts[0][:, :, :1], jnp.nan)
    merged = jnp.concatenate([nans, *parts, nans], axis=2)
    flat = merged.reshape(*merged.shape[:2], -1)
    ends = np.cumsum([1, *(part.shape[2] for part in parts)]) * 128
    placed = tuple(Columns(flat, int(end), *part.shape[2:]) for end, part in zip(ends, parts, strict=False))
    return placed if len(parts) > 1 else placed[0]


def test_positions_as_the_model_does(qkv, before):
    flat = qkv[0].reshape(2, TOKENS, -1)
    normed = rms_norm(flat, 1e-6, before.q_norm).reshape(qkv[0].shape)
    np.testing.assert_allclose(
        operands.positioned(qkv[0], before.q_norm, before), rotate(normed, *before.rope), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("block_kv", [224, 192, 128])
@pytest.mark.parametrize(("has_before", "rotate"), [(True, False), (False, False), (True, True), (False, True)])
def test_fused_prologue_makes_what_xla_makes(qkv, before, block_kv, has_before, rotate):
    before = before if has_before else Before()
    static = dict(valid_keys=VALID, pv="e4m3", config=AttentionConfig(block_kv=block_kv), rotate=rotate)
    plain = jax.jit(functools.partial(operands.quantize, **static))(*qkv, before)
    fused = jax.jit(functools.partial(prologue.quantize, **static))(*qkv, before)
    # Angles in f16, and sums in another order: a value near the middle between two codes may fall either way. So may,
    # before it is rotated, one between two of bf16.
    codes, scales = (0.05, 2e-3) if rotate else (0.03, 1e-3)
    for name, ours, theirs in zip(plain._fields, fused, plain, strict=True):
        if name == "q":
            ours, theirs = ours[:, :TOKENS], theirs[:, :TOKENS]
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, name
        ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
        if name in ("q", "k"):
            assert np.abs(ours - theirs).max() <= 1 and (ours != theirs).mean() < codes
        elif name == "v":
            assert (ours != theirs).mean() < 1e-3
        elif name == "v_mean":  # of codes, of which two of a channel may be one step apart, at most 32 of its scale
            assert (np.abs(ours - theirs) <= 1e-6 + 2 * 32 * np.asarray(plain.v_scale) / VALID).all()
        else:
            np.testing.assert_allclose(ours, theirs, rtol=scales, atol=1e-14)  # padding has the scale of zeros, or none


@pytest.mark.parametrize("rotate", [False, True])
def test_attention_with_it_is_attention(qkv, before, rotate):
    """On noise: Q and K to seven bits, 1.2 % together; 16-bit V."""
    q, k, v = qkv
    run = functools.partial(attention_int8, valid_keys=VALID, before=before, pv="bf16", prologue="fused", rotate=rotate)
    out = jax.jit(run)(q, k, v)
    q, k = (operands.positioned(x, norm, before) for x, norm in ((q, before.q_norm), (k, before.k_norm)))
    q, k, v = (np.asarray(x, np.float64) for x in (q, k[:, :VALID], v[:, :VALID]))
    scores = np.einsum("bqac,bkac->baqk", q, k) * 128**-0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    exact = np.einsum("baqk,bkac->bqac", weights / weights.sum(-1, keepdims=True), v)
    assert np.linalg.norm(np.asarray(out, np.float64) - exact) < 0.02 * np.linalg.norm(exact)


@pytest.mark.parametrize("rotate", [False, True])
def test_padding_of_keys_may_hold_anything(qkv, before, rotate):
    q, k, v = qkv
    poison = k.at[:, VALID:].set(jnp.nan), v.at[:, VALID:].set(jnp.nan)
    run = jax.jit(functools.partial(attention_int8, valid_keys=VALID, before=before, prologue="fused", rotate=rotate))
    np.testing.assert_array_equal(run(q, *poison), run(q, k, v))


@pytest.mark.parametrize("case", [*benchmark.cases(), benchmark.Case("ragged", 12, 1001)], ids=str)
@pytest.mark.parametrize(("has_before", "rotate"), [(True, False), (False, False), (True, True)])
def test_lowers_for_cuda_at_every_benchmark_shape(case, has_before, rotate):
    *qkv, before = jax.eval_shape(lambda: benchmark.random_operands(case))
    operands = *qkv, before if has_before else Before()
    program = benchmark.program(case, functools.partial(prologue.quantize, rotate=rotate))
    lowered = jax.jit(program).trace(*operands).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("@mosaic_gpu_v2(") == 3


@pytest.mark.parametrize("case", benchmark.cases(), ids=str)
def test_kernels_read_a_merged_projection_in_place(case):
    """What they take is the whole of it: a slice in front of a kernel would be written out."""
    before = jax.eval_shape(lambda: benchmark.random_operands(case))[-1]
    shape = (1, case.tokens, 3 * case.heads * 128)
    program = benchmark.program(case, functools.partial(prologue.quantize, rotate=True))
    merged = lambda qkv, before: program(*side_by_side(qkv, 3, case.heads), before)
    lowered = (
        jax.jit(merged).trace(jax.ShapeDtypeStruct(shape, jnp.bfloat16), before).lower(lowering_platforms=("cuda",))
    )
    kernels = [line for line in lowered.as_text().splitlines() if "@mosaic_gpu_v2(" in line]
    taken = f"(tensor<{'x'.join(map(str, shape))}xbf16>,"
    assert len(kernels) == 3 and all(taken in line.split(" : ")[-1] for line in kernels)


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("pv", ["e4m3", "f16", "bf16"])
def test_columns_of_one_array_are_what_arrays_are(qkv, before, pv, rotate):
    static = dict(valid_keys=VALID, pv=pv, config=AttentionConfig(), rotate=rotate)
    quantize = jax.jit(functools.partial(prologue.quantize, **static))
    for name, merged, separate in zip(
        Operands._fields, quantize(*beside_others(*qkv), before), quantize(*qkv, before), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(merged, np.float32), np.asarray(separate, np.float32), name)


@pytest.mark.parametrize("how", [dict(prologue="fused"), dict(prologue="xla"), dict(prologue="fused", return_lse=True)])
def test_attention_takes_columns_of_one_array(qkv, before, how):
    run = functools.partial(attention_int8, valid_keys=VALID, before=before, rotate=True, **how)
    rows = lambda x: jax.tree.map(lambda leaf: leaf[:, None], x)
    for call, of in ((run, lambda x: x), (jax.vmap(run), rows)):
        found, wanted = (jax.tree.leaves(call(*of(x))) for x in (beside_others(*qkv), tuple(qkv)))
        for one, other in zip(found, wanted, strict=True):
            # Two programs: XLA may add up the weights of all keys, in f32, in another order, which a log-sum-exp shows.
            off = 0 if one.dtype == jnp.bfloat16 else VALID * 2.0**-24
            np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (one, other)), rtol=0, atol=off)


def test_lanes_turn_rows_in_place(rng):
    x = rng.integers(-9, 10, (16, 128)).astype(float)
    place = lambda x: x.reshape(2, 8, 16, 4, 2).transpose(2, 0, 1, 3, 4).reshape(16, 2, 32, 2)  # tile, half, lane, pair
    words = [list(tile) for tile in place(x)]
    tiles = prologue_registers.turned_tiles(words, product_of_lanes, np.add, np.subtract)
    expected = np.moveaxis(place(x @ signs(128)), 3, 2)
    np.testing.assert_array_equal(np.array(tiles).reshape(16, 2, 2, 32), expected)


@pytest.fixture
def registers_in_plain_jax(monkeypatch):
    """What a thread does with its registers cannot be interpreted; the rest of the kernels can."""

    def rotated(x, angles):
        a, b, cosine, sine = x[:, ::2], x[:, 1::2], angles[:, ::2], angles[:, 1::2]
        return jnp.stack([a * cosine - b * sine, b * cosine + a * sine], axis=-1).reshape(x.shape)

    def turned(x):  # no constants in a kernel: not by a matrix
        y = x.astype(jnp.bfloat16).astype(jnp.float32)
        for distance in (1, 2, 4, 8, 16, 32, 64):
            a, b = jnp.moveaxis(y.reshape(len(x), -1, 2, distance), 2, 0)
            y = jnp.stack([a + b, a - b], axis=2).reshape(x.shape)
        return y

    def in_fours(x):
        codes = lax.bitcast_convert_type(jnp.clip(x, -448, 448).astype(jnp.float8_e4m3fn), jnp.int8)
        return operands.permute_values(codes)

    monkeypatch.setattr(prologue_sm90, "rotate_pairs", rotated)
    monkeypatch.setattr(prologue_sm90, "turn_rows", turned)
    monkeypatch.setattr(prologue_sm90, "e4m3_in_fours", in_fours)
    monkeypatch.setattr(prologue_sm90, "largest_of_warp", lambda rows: jnp.repeat(rows.reshape(-1, 16).max(1), 16))
    launch = functools.partial(prologue_sm90.launch_grid, interpret=plgpu.InterpretGPUParams(detect_races=True))
    monkeypatch.setattr(prologue_sm90, "launch_grid", launch)


interpretable = pytest.mark.skipif(not hasattr(plgpu, "InterpretGPUParams"), reason="this jax cannot interpret it")


@interpretable
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_interpreted_rounding_matches_its_emulation_without_races(rng, registers_in_plain_jax, shared, turned):
    tokens = 320 if shared else 296
    kind = dict(normed=True, rotated=True, centred=shared, turned=turned)
    plan = Round(tokens, 160, 283, shared, **kind) if shared else Round(tokens, 128, tokens, shared, **kind)
    x = beside_others(jnp.asarray(rng.standard_normal((1, 296, HEADS, 128)), jnp.bfloat16))
    vectors = jnp.asarray(rng.uniform(0.5, 2, (1, HEADS, 2, 128)), jnp.float32)
    inverse = jnp.asarray(rng.uniform(0.5, 2, (1, 296)), jnp.float32)
    angles = jnp.asarray(rng.uniform(-1, 1, (296, 128)), jnp.float16)
    codes, scales = prologue_sm90.round_rows(x, vectors, inverse, angles, plan)
    expected, expected_scales = prologue.emulate_rows(x, vectors, inverse, angles, plan)
    difference = np.abs(np.asarray(codes, np.int32) - np.asarray(expected, np.int32))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
    rows = plan.block if not shared else 64
    flat, expected_flat = (np.asarray(s).reshape(*s.shape[:2], -1)[..., :rows] for s in (scales, expected_scales))
    np.testing.assert_allclose(flat, expected_flat, rtol=1e-6)


@interpretable
def test_interpreted_transposing_matches_its_emulation_without_races(rng, registers_in_plain_jax):
    v = beside_others(jnp.asarray(rng.standard_normal((1, 296, 2, 128)), jnp.bfloat16))
    mean, inverse = rng.uniform(-1, 1, (1, 2, 128)), rng.uniform(50, 100, (1, 2, 128))
    vectors = jnp.asarray(np.stack([mean, inverse], axis=2), jnp.float32)
    static = dict(tokens=320, valid=283)
    ours, theirs = prologue_sm90.transpose_values(v, vectors, **static), prologue.emulate_values(v, vectors, **static)
    np.testing.assert_array_equal(np.asarray(ours, np.float32), np.asarray(theirs, np.float32))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(before=Before(jnp.ones(128), jnp.ones(128))), "before.q_norm has shape"),
        (dict(before=Before(jnp.ones(256), jnp.ones(256).at[0].set(jnp.nan))), "before.k_norm holds"),
        (dict(before=Before(rope=(jnp.ones((3, 128)), jnp.ones((4, 128))))), "before.rope has shape"),
        (dict(prologue="triton"), 'prologue is "triton"'),
        (dict(q=jnp.ones((1, 4, 2, 128)), prologue="fused"), "q .* is float32"),
    ],
)
def test_bad_arguments_are_named(changes, named):
    x = jnp.ones((1, 4, 2, 128), jnp.bfloat16)
    values = dict(q=x, k=x, v=x) | changes
    with pytest.raises((TypeError, ValueError), match=named):
        attention_int8(values.pop("q"), values.pop("k"), values.pop("v"), **values)
