"""Operands that do not multiply are refused before anything runs, in a line that names the one to blame."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from sixbit_jax.formats import Int8Tensor, QuantizedWeight, check_parts, quantize_int8, quantize_nvfp4
from sixbit_jax.linear import explain, linear
from sixbit_jax.linear.checks import check_operands

X, W = jnp.ones((4, 32)), jnp.ones((8, 32))
NVFP4, INT8 = quantize_nvfp4(W), quantize_int8(W)


def changed(tensor, **parts):
    return dataclasses.replace(tensor, **parts)


REFUSED = {
    "integer x": (X.astype(jnp.int32), NVFP4, TypeError, "x is int32; it must be a real float"),
    "complex x": (X.astype(jnp.complex64), W, TypeError, "x is complex64"),
    "codes without scales": (X, W.astype(jnp.int8), TypeError, "w is int8; .* wrap them in an Int8Tensor"),
    "unsigned codes": (
        X,
        changed(INT8, data=INT8.data.astype(jnp.uint8)),
        TypeError,
        "w.data is uint8; it must be int8",
    ),
    "scales of other rows": (X, changed(INT8, scale=jnp.ones((3, 1))), ValueError, r"w.scale has shape \(3, 1\)"),
    "scales without an axis for groups": (X, changed(INT8, scale=jnp.ones(8)), ValueError, r"w.scale has shape \(8,\)"),
    "groups that do not divide k": (X, changed(INT8, scale=jnp.ones((8, 3))), ValueError, "groups that divide 32"),
    "half of the block scales": (
        *(X, changed(NVFP4, block_scale=NVFP4.block_scale[:, :1])),
        *(ValueError, r"w.block_scale has shape \(8, 1\); a tensor \(8, 32\) needs \(8, 2\)"),
    ),
    "block scales of another type": (
        *(X, changed(NVFP4, block_scale=NVFP4.block_scale.astype(jnp.float32))),
        *(TypeError, "w.block_scale is float32; it must be float8_e4m3fn"),
    ),
    "a tensor scale of other rows": (X, changed(NVFP4, tensor_scale=jnp.ones(2)), ValueError, "must have leading axes"),
    "rows of half blocks": (jnp.ones((4, 8)), changed(NVFP4, packed=NVFP4.packed[:, :4]), ValueError, "rows of 8"),
    "signed bytes of codes": (X, changed(NVFP4, packed=NVFP4.packed.astype(jnp.int8)), TypeError, "w.packed is int8"),
    "smoothing of other channels": (X, QuantizedWeight(INT8, smooth=jnp.ones(31)), ValueError, "w.smooth has shape"),
    "offsets of other rows": (X, QuantizedWeight(INT8, zero=jnp.ones((7, 1))), ValueError, "w.zero has shape"),
    "a branch of other inputs": (
        *(X, QuantizedWeight(INT8, low_rank=(jnp.ones((2, 30)), jnp.ones((8, 2))))),
        *(ValueError, r"w.low_rank\[0\] has shape \(2, 30\)"),
    ),
    "a rotation that does not divide k": (X, QuantizedWeight(INT8, rotated=24), ValueError, "w.rotated is 24"),
    "other features": (X[:, :16], NVFP4, ValueError, r"x \(4, 16\) does not end in 32 features"),
    "a scalar": (jnp.float32(1), NVFP4, ValueError, r"x \(\) does not end in"),
    "stacked layers": (X, quantize_nvfp4(jnp.ones((2, 8, 32))), ValueError, r"expected \(n, k\); scan over"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_operands_that_do_not_fit_are_named(case):
    x, w, error, words = REFUSED[case]
    with pytest.raises(error, match=f"linear: .*{words}"):
        check_operands(x, w)
    # Of these the checks of types that the tests switch on would speak first.
    if case in ("integer x", "complex x", "a scalar"):
        return
    for public in (linear, explain):
        with pytest.raises(error, match=f"linear: .*{words}"):
            public(x, w, act=None if isinstance(w, jax.Array) else "int8")


@pytest.mark.parametrize("w", [W, NVFP4], ids=["dense", "quantized"])
def test_a_bias_of_other_rows_is_named(w):
    with pytest.raises(ValueError, match=r"linear: bias has shape \(3,\), w \(8, 32\) needs \(8,\)"):
        linear(X, w, jnp.ones(3))


def test_scales_may_be_shared_by_rows():
    """What `quantize_int8` makes along other axes than the last is a valid tensor, and multiplies."""
    for axis in ((0, 1), 0):
        w = quantize_int8(W, axis=axis)
        check_parts(w)
        # Integers of 127 and a scale of 1/127: only the scale is rounded.
        assert jnp.allclose(linear(X, w, act="int8"), 32.0, rtol=1e-6)


def test_parts_are_checked_inside_a_trace():
    """Types and shapes are known there; values are not needed."""
    with pytest.raises(ValueError, match=r"w\.scale has shape"):
        jax.eval_shape(lambda x: linear(x, Int8Tensor(INT8.data, jnp.ones((3, 1)))), X)
