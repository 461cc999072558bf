"""Number formats: codes against tables typed from the standard, tensors against plain numpy loops, refusals."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.experimental import checkify
from nvfp4_reference import E2M1, numpy_nvfp4

from sixbit_jax.formats import (
    Int4Tensor,
    NVFP4Tensor,
    check_finite,
    decode_e2m1,
    decode_e4m3,
    dequantize,
    encode_e2m1,
    encode_int8,
    expand_nvfp4,
    pack_int4,
    pack_nibbles,
    quantize_int8,
    quantize_nvfp4,
    straight_through,
    to_int8,
    unpack_int4,
    unpack_nibbles,
    value_scales,
)
from sixbit_jax.formats.rounding import divide, round_quotient

CODES = np.arange(16, dtype=np.uint8)


def sqnr(x, y) -> float:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return 10 * np.log10((x**2).sum() / ((x - y) ** 2).sum())


class TestE2M1:
    def test_every_code_decodes_to_the_standards_value(self):
        for dtype in (jnp.float32, jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn):
            values = np.asarray(decode_e2m1(jnp.asarray(CODES), dtype).astype(jnp.float32))
            np.testing.assert_array_equal(values.view(np.uint32), E2M1.view(np.uint32))

    def test_every_value_encodes_to_its_code(self):
        np.testing.assert_array_equal(encode_e2m1(jnp.asarray(E2M1)), CODES)

    def test_ties_go_to_the_even_code(self):
        ties = (E2M1[:7] + E2M1[1:8]) / 2
        assert encode_e2m1(jnp.asarray(ties)).tolist() == [0, 2, 2, 4, 4, 6, 6]
        assert encode_e2m1(-jnp.asarray(ties)).tolist() == [8, 10, 10, 12, 12, 14, 14]

    def test_the_next_float_beside_a_tie_is_no_tie(self):
        ties = (E2M1[:7] + E2M1[1:8]) / 2
        assert encode_e2m1(jnp.asarray(np.nextafter(ties, np.float32(0)))).tolist() == [0, 1, 2, 3, 4, 5, 6]
        assert encode_e2m1(jnp.asarray(np.nextafter(ties, np.float32(9)))).tolist() == [1, 2, 3, 4, 5, 6, 7]

    def test_beyond_the_range_saturates(self):
        beyond = jnp.array([6.1, 1e38, jnp.inf, -jnp.inf, jnp.nan])
        assert encode_e2m1(beyond).tolist() == [7, 7, 7, 15, 7]

    def test_agrees_with_the_four_bit_dtype(self, rng):
        x = np.float32(rng.uniform(-7, 7, 4096))
        np.testing.assert_array_equal(encode_e2m1(jnp.asarray(x)), x.astype(ml_dtypes.float4_e2m1fn).view(np.uint8))

    def test_bytes_are_what_xla_reads_as_four_bit_numbers(self):
        packed = pack_nibbles(encode_e2m1(jnp.asarray(E2M1)))
        pairs = jax.lax.bitcast_convert_type(packed, jnp.float4_e2m1fn)
        np.testing.assert_array_equal(pairs.astype(jnp.float32).reshape(-1), E2M1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_every_e4m3_code_decodes_as_the_dtype_does(dtype):
    codes = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    ours = np.asarray(jax.jit(decode_e4m3, static_argnums=1)(jnp.asarray(codes), dtype))
    theirs = codes.astype(dtype)
    nan = np.isnan(theirs)
    assert nan.sum() == 2 and np.isnan(ours[nan]).all()
    np.testing.assert_array_equal(ours[~nan].view(f"u{ours.itemsize}"), theirs[~nan].view(f"u{ours.itemsize}"))


class TestStochasticRounding:
    def test_the_mean_is_the_value(self):
        x = jnp.array([0.1, 0.6, 1.3, 2.2, 3.7, 5.5, -5.0])
        keys = jax.random.split(jax.random.key(0), 20000)
        mean = decode_e2m1(jax.vmap(lambda key: encode_e2m1(x, key))(keys)).mean(axis=0)
        # One sample deviates by at most half the distance of two neighbours, 1: six standard errors.
        np.testing.assert_allclose(mean, x, atol=6 / np.sqrt(20000), rtol=0)

    def test_values_of_the_grid_never_move(self):
        for seed in range(20):
            assert encode_e2m1(jnp.asarray(E2M1), jax.random.key(seed)).tolist() == CODES.tolist()

    def test_integers_too(self, rng):
        x = jnp.asarray(rng.uniform(-3, 3, (2000, 16)), jnp.float32)
        once = functools.partial(quantize_int8, key=jax.random.key(0))
        codes, scaled = once(x).data.astype(jnp.float32), x / value_scales(once(x))
        assert (jnp.abs(codes - scaled) < 1 + 1e-4).all()
        # 32,000 errors with a standard deviation of at most a half.
        assert abs(float((codes - scaled).mean())) < 6 * 0.5 / np.sqrt(32000)

    def test_the_key_decides(self, rng):
        x = jnp.asarray(rng.standard_normal((4, 64)), jnp.float32)
        same, again, other = (quantize_nvfp4(x, key=jax.random.key(seed)) for seed in (1, 1, 2))
        assert (same.packed == again.packed).all()
        assert (same.packed != other.packed).any()
        assert (same.block_scale == quantize_nvfp4(x).block_scale).all()


class TestNVFP4:
    @pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
    @pytest.mark.parametrize("compiled", [False, True])
    def test_equals_the_numpy_loop(self, rng, scale, compiled):
        x = np.float32(rng.standard_normal((6, 64)) * scale)
        x[1], x[2, :16], x[3, 5] = 0, -0.0, 300 * scale
        quantize = jax.jit(quantize_nvfp4) if compiled else quantize_nvfp4
        t = quantize(jnp.asarray(x))
        packed, block_scale, tensor_scale = numpy_nvfp4(x)
        assert t.tensor_scale == tensor_scale
        np.testing.assert_array_equal(np.asarray(t.block_scale), block_scale)
        np.testing.assert_array_equal(t.packed, packed)

    def test_facts_of_the_tensor(self):
        t = quantize_nvfp4(jnp.ones((3, 5, 32), jnp.bfloat16))
        assert t.shape == (3, 5, 32) and t.ndim == 3 and t.dtype == jnp.float4_e2m1fn
        assert t.packed.dtype == jnp.uint8 and t.block_scale.dtype == jnp.float8_e4m3fn
        # 4.5 bits a value and the tensor scale.
        assert t.nbytes == 3 * 5 * 32 * 4.5 / 8 + 4

    def test_zeros_give_zero_codes_and_the_smallest_scale(self):
        t = quantize_nvfp4(jnp.zeros((2, 32)))
        assert t.tensor_scale == 1 and not t.packed.any()
        assert (t.block_scale.astype(jnp.float32) == 2.0**-6).all()
        assert not dequantize(t).any()

    def test_values_too_small_for_a_reciprocal_count_as_zeros(self):
        tiny = quantize_nvfp4(jnp.full((1, 16), 1e-36))
        assert tiny.tensor_scale == 1 and not tiny.packed.any()

    @pytest.mark.parametrize("std", [0.002, 0.005, 0.01, 0.02, 0.05])
    def test_two_levels_of_scales_keep_small_weights(self, rng, std):
        """20 dB at every size; block scales alone fall to 0.7 dB at 0.002."""
        w = jnp.asarray(rng.standard_normal((256, 512)) * std, jnp.float32)
        # Measured: 20.4.
        assert sqnr(w, dequantize(quantize_nvfp4(w))) >= 20
        assert sqnr(w, dequantize(quantize_int8(w))) >= 40
        # The test can fail: without the first level small weights are lost.
        assert sqnr(w, dequantize(quantize_nvfp4(w, tensor_scale=1.0))) < 20 or std == 0.05

    def test_a_given_tensor_scale_saturates(self):
        t = quantize_nvfp4(jnp.full((1, 16), 1e6), tensor_scale=1.0)
        assert (dequantize(t) == 6 * 448).all()

    def test_a_tensor_scale_per_row_is_as_good_as_rows_apart(self, rng):
        x = jnp.asarray(rng.standard_normal((4, 32)) * 10.0 ** np.arange(4)[:, None], jnp.float32)
        rows = [quantize_nvfp4(row) for row in x]
        t = quantize_nvfp4(x, tensor_scale=jnp.stack([row.tensor_scale for row in rows]))
        np.testing.assert_array_equal(dequantize(t), jnp.stack([dequantize(row) for row in rows]))

    def test_expansion_without_the_tensor_scale_is_exact_in_sixteen_bits(self, rng):
        t = quantize_nvfp4(jnp.asarray(rng.standard_normal((8, 256)), jnp.float32))
        exact = expand_nvfp4(t, jnp.float32)
        for dtype in (jnp.bfloat16, jnp.float16):
            np.testing.assert_array_equal(expand_nvfp4(t, dtype).astype(jnp.float32), exact)
        np.testing.assert_array_equal(exact * t.tensor_scale, dequantize(t))

    def test_every_code_under_every_scale_is_exact_in_bf16(self):
        scales = jnp.arange(0x08, 0x7F, dtype=jnp.uint8)
        scales = jax.lax.bitcast_convert_type(scales, jnp.float8_e4m3fn)[:, None]
        packed = jnp.broadcast_to(pack_nibbles(jnp.asarray(CODES)), (len(scales), 8))
        t = NVFP4Tensor(packed, scales, jnp.float32(1))
        exact = E2M1[None].astype(np.float64) * np.asarray(scales, np.float64)
        np.testing.assert_array_equal(np.asarray(expand_nvfp4(t), np.float64), exact)

    def test_a_nan_or_infinity_is_loud(self):
        for bad in (jnp.nan, jnp.inf):
            values = dequantize(quantize_nvfp4(jnp.ones((2, 32)).at[1, 3].set(bad)))
            assert jnp.isnan(values).all()


class TestInt8:
    def test_equals_numpy(self, rng):
        x = np.float32(rng.standard_normal((5, 7, 48)))
        t = quantize_int8(jnp.asarray(x))
        scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
        np.testing.assert_array_equal(t.scale, scale)
        np.testing.assert_array_equal(t.data, np.round(x * (np.float32(1) / scale)).astype(np.int8))

    @pytest.mark.parametrize("axis", [-1, 0, (0, 1), -2])
    def test_scales_are_kept_along_the_reduced_axes(self, rng, axis):
        x = jnp.asarray(rng.standard_normal((4, 6, 8)), jnp.float32)
        t = quantize_int8(x, axis=axis)
        assert t.scale.shape == jnp.max(x, axis=axis, keepdims=True).shape
        # Half a step of the largest value.
        np.testing.assert_allclose(dequantize(t), x, atol=float(jnp.abs(x).max()) / 127 * 0.51, rtol=0)

    def test_groups_are_small_rows(self, rng):
        x = jnp.asarray(rng.standard_normal((3, 64)), jnp.float32)
        t, rows = quantize_int8(x, group=16), quantize_int8(x.reshape(12, 16))
        assert t.scale.shape == (3, 4)
        np.testing.assert_array_equal(t.data, rows.data.reshape(3, 64))
        np.testing.assert_array_equal(dequantize(t), dequantize(rows).reshape(3, 64))

    def test_halves_go_to_even_and_codes_stay_symmetric(self):
        assert encode_int8(jnp.array([0.5, 1.5, -2.5, -400.0]), jnp.ones(1)).data.tolist() == [0, 2, -2, -127]

    def test_zero_rows(self):
        t = quantize_int8(jnp.zeros((2, 8)))
        assert not t.data.any() and (t.scale == 1).all()

    def test_a_nan_or_infinity_stays_in_its_row(self):
        for bad in (jnp.nan, jnp.inf):
            values = dequantize(quantize_int8(jnp.ones((2, 8)).at[1, 3].set(bad)))
            assert jnp.isfinite(values[0]).all() and not jnp.isfinite(values[1]).any()


class TestInt4:
    def test_round_trip_and_xlas_view_of_the_bytes(self):
        codes = jnp.arange(-8, 8, dtype=jnp.int8)[None]
        t = pack_int4(codes, jnp.full((1, 1), 0.5))
        np.testing.assert_array_equal(unpack_int4(t), codes)
        pairs = jax.lax.bitcast_convert_type(t.packed, jnp.int4)
        np.testing.assert_array_equal(pairs.astype(jnp.int8).reshape(1, 16), codes)
        np.testing.assert_array_equal(dequantize(t), codes.astype(jnp.float32) * 0.5)
        assert t.nbytes == 8 + 4 and t.dtype == jnp.int4 and t.shape == (1, 16)

    def test_int8_carries_it_exactly(self):
        t = Int4Tensor(jnp.arange(16, dtype=jnp.uint8).reshape(2, 8), jnp.ones((2, 4)))
        np.testing.assert_array_equal(dequantize(to_int8(t)), dequantize(t))


def test_int8_expansion_of_nvfp4_adds_little(rng):
    """One more rounding at a step of amax / 127: (amax / 127)² / 12 of noise, about 1 % of NVFP4's own."""
    w = jnp.asarray(rng.standard_normal((64, 5120)) * 0.02, jnp.float32)
    t = quantize_nvfp4(w)
    own, both = (float(((dequantize(q) - w) ** 2).sum()) for q in (t, to_int8(t)))
    assert to_int8(t).scale.shape == (64, 1)
    # Measured: 1.55 %.
    assert both / own - 1 <= 0.02


def test_value_scales_times_codes_are_the_values(rng):
    x = jnp.asarray(rng.standard_normal((4, 64)), jnp.float32)
    t = quantize_nvfp4(x)
    codes = decode_e2m1(unpack_nibbles(t.packed))
    # Two roundings in another order.
    np.testing.assert_allclose(codes * value_scales(t), dequantize(t), rtol=2**-22, atol=0)


class TestTransformations:
    X = jnp.asarray(np.random.default_rng(1).standard_normal((4, 3, 64)), jnp.float32)

    @pytest.mark.parametrize("quantize", [quantize_nvfp4, quantize_int8, functools.partial(quantize_int8, group=16)])
    def test_vmap_is_a_loop(self, quantize):
        mapped = jax.vmap(quantize)(self.X)
        looped = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[quantize(x) for x in self.X])
        assert mapped.shape == self.X.shape
        jax.tree.map(np.testing.assert_array_equal, mapped, looped)
        np.testing.assert_array_equal(dequantize(mapped), jax.vmap(dequantize)(mapped))
        np.testing.assert_array_equal(to_int8(mapped).data, jax.vmap(to_int8)(mapped).data)

    @pytest.mark.parametrize("quantize", [quantize_nvfp4, quantize_int8])
    def test_jit_and_eval_shape(self, quantize):
        eager, compiled = quantize(self.X), jax.jit(quantize)(self.X)
        jax.tree.map(np.testing.assert_array_equal, eager, compiled)
        shapes = jax.eval_shape(quantize, jax.ShapeDtypeStruct(self.X.shape, jnp.bfloat16))
        assert shapes.shape == eager.shape and shapes.nbytes == eager.nbytes and shapes.dtype == eager.dtype

    @pytest.mark.parametrize("quantize", [quantize_nvfp4, quantize_int8])
    def test_straight_through_is_the_identity_to_gradients(self, quantize):
        value = lambda x: (straight_through(x, quantize) ** 2).sum()
        expected = 2 * dequantize(quantize(self.X))
        np.testing.assert_array_equal(jax.jit(jax.grad(value))(self.X), expected)
        np.testing.assert_array_equal(straight_through(self.X, quantize), dequantize(quantize(self.X)))

    def test_straight_through_keeps_the_dtype_and_takes_a_key(self):
        x, key = self.X.astype(jnp.bfloat16), jax.random.key(0)
        stochastic = lambda x: straight_through(x, functools.partial(quantize_nvfp4, key=key))
        assert stochastic(x).dtype == jnp.bfloat16
        assert (jax.grad(lambda x: stochastic(x).astype(jnp.float32).sum())(x) == 1).all()

    def test_without_it_no_gradient_passes(self):
        assert not jax.grad(lambda x: dequantize(quantize_nvfp4(x)).sum())(self.X).any()

    def test_scan_over_stacked_layers(self):
        stacked = jax.vmap(quantize_nvfp4)(self.X)
        _, values = jax.lax.scan(lambda _, t: (None, dequantize(t)), None, stacked)
        np.testing.assert_array_equal(values, dequantize(stacked))


class TestRefusals:
    def test_incomplete_blocks_name_axis_and_length(self):
        with pytest.raises(ValueError, match=r"axis -1 of x has length 50, not a multiple of 16; pad=True .* to 64"):
            quantize_nvfp4(jnp.ones((2, 50)))
        with pytest.raises(ValueError, match="length 50, not a multiple of 128"):
            quantize_int8(jnp.ones((2, 50)), group=128)

    def test_padding_fills_the_last_block(self):
        t = quantize_nvfp4(jnp.ones((2, 50)), pad=True)
        assert t.shape == (2, 64)
        np.testing.assert_allclose(dequantize(t)[:, :50], 1, rtol=2**-22)
        assert not dequantize(t)[:, 50:].any()

    @pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, jnp.bool_])
    @pytest.mark.parametrize("quantize", [quantize_nvfp4, quantize_int8])
    def test_only_real_floats(self, quantize, dtype):
        with pytest.raises(TypeError, match=f"x is {jnp.dtype(dtype).name}; it must be a real float"):
            quantize(jnp.ones((2, 16), dtype))

    def test_no_axis(self):
        with pytest.raises(ValueError, match="must have a length"):
            quantize_nvfp4(jnp.float32(3))

    def test_tensor_scale_that_fits_no_axes(self):
        with pytest.raises(ValueError, match=r"tensor_scale \(3,\) must have leading axes of x \(2, 16\)"):
            quantize_nvfp4(jnp.ones((2, 16)), tensor_scale=jnp.ones(3))

    def test_groups_have_values(self):
        with pytest.raises(ValueError, match="a group has at least one value, not 0"):
            quantize_int8(jnp.ones((2, 16)), group=0)

    def test_groups_run_along_the_last_axis(self):
        with pytest.raises(ValueError, match="axis=0 cannot be grouped"):
            quantize_int8(jnp.ones((2, 16)), axis=0, group=16)

    def test_something_else(self):
        with pytest.raises(TypeError, match="list is not a quantized tensor"):
            dequantize([1.0])


class TestCheckFinite:
    X = jnp.ones((2, 3, 16)).at[1, 0, 7].set(jnp.nan).at[1, 2, 3].set(jnp.inf)

    def test_names_the_first_position(self):
        with pytest.raises(ValueError, match=r"activations\[1, 0, 7\] is nan"):
            quantize_nvfp4(check_finite(self.X, "activations"))

    def test_passes_finite_values(self):
        np.testing.assert_array_equal(check_finite(self.X[0]), self.X[0])

    def test_inside_jit_through_checkify(self):
        checked = checkify.checkify(jax.jit(lambda x: quantize_nvfp4(check_finite(x))))
        error, _ = checked(self.X)
        with pytest.raises(ValueError, match=r"x\[1, 0, 7\] is nan"):
            error.throw()
        error, t = checked(self.X[0])
        error.throw()
        assert t.shape == (3, 16)


class TestDivide:
    """The bits of IEEE division, from whatever quotient a device gives."""

    def operands(self, rng, kind):
        x, y = (np.ldexp(rng.uniform(1, 2, 200_000), rng.integers(-40, 40, 200_000)).astype(np.float32) for _ in "xy")
        return x, {"any": y, "six": np.full_like(y, 6), "e4m3": rng.integers(8, 16, y.shape).astype(np.float32)}[kind]

    @pytest.mark.parametrize("kind", ["any", "six", "e4m3"])
    @pytest.mark.parametrize("off", [-2, -1, 0, 1, 2])
    def test_corrects_what_a_gpu_gets_wrong(self, rng, kind, off):
        x, y = self.operands(rng, kind)
        wrong = ((x / y).view(np.int32) + off).view(np.float32)
        np.testing.assert_array_equal(round_quotient(*map(jnp.asarray, (x, y, wrong))), x / y)

    def test_corrects_what_xla_rewrites(self, rng):
        """A constant divisor, a divisor shared by all, and two divisions in a row, each inside one program."""
        x, _ = self.operands(rng, "any")
        y = np.float32(3.7e-5)
        plain = jax.jit(lambda x, y: x / 6 / y)(x, y)
        assert (np.asarray(plain) != x / np.float32(6) / y).mean() > 0.1  # or there is nothing to correct
        ours = jax.jit(lambda x, y: divide(divide(x, 6.0), y))(jnp.asarray(x), jnp.asarray(y))
        np.testing.assert_array_equal(ours, x / np.float32(6) / y)

    def test_ends_of_the_range_are_left_alone(self):
        x = jnp.array([0.0, -0.0, jnp.inf, -jnp.inf, jnp.nan, 3e38, 1e-37, 1.0])
        y = jnp.array([2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 3e37])
        np.testing.assert_array_equal(divide(x, y), np.asarray(x) / np.asarray(y))
