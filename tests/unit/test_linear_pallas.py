"""`linear` under our kernels: what they take, and that their emulations mean what the oracle means."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import hopper
from pallas_kernels.nvfp4_matmul.config import MOST_TOKENS
from pallas_kernels.quantize_rows.config import WIDEST
from sixbit_jax.formats import QuantizedWeight, hadamard, quantize_int8, quantize_nvfp4
from sixbit_jax.linear import Added, Gelu, LayerNorm, linear, pallas, reference, xla
from sixbit_jax.linear.after import added
from sixbit_jax.linear.before import applied
from sixbit_jax.linear.magnitude import magnitudes
from sixbit_jax.linear.spec import LinearSpec, describe

SPEC = LinearSpec(m=64, k=512, n=256, x="bfloat16", w="nvfp4", act="int8", platform="gpu")


@pytest.fixture(autouse=True)
def on_a_hopper_gpu(monkeypatch):
    monkeypatch.setattr(hopper, "capability", lambda: "9.0")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(w="int8", rotated=128, act_group=128, smooth=True, rank=16),
        dict(w="int4", m=1, k=128),
        dict(act=None, m=208),
    ],
)
def test_supported(changes):
    assert pallas.supports(dataclasses.replace(SPEC, **changes)) is None


def test_limits_are_those_of_the_kernels():
    """Said twice: to ask what is supported must not import the kernels."""
    assert pallas.FEW_TOKENS == MOST_TOKENS
    assert pallas.WIDEST == WIDEST


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(platform="cpu"), "this is cpu"),
        (dict(w="bfloat16"), "need a quantized weight"),
        (dict(x="float32"), "x is float32"),
        (dict(k=500), "multiples of 128"),
        (dict(m=0), "must be tokens"),
        (dict(k=18560), "rows of 18560"),
        (dict(w="int8", w_groups=4), "4 scales a row"),
        (dict(act_group=64), "groups of 64"),
        (dict(rotated=64), "64 wide"),
        (dict(zero_groups=1), "zero points"),
        (dict(act="nvfp4"), 'activations "nvfp4"'),
        (dict(act=None, m=209), "209 tokens"),
        (dict(act=None, k=384), "multiple of 256"),
        (dict(act=None, smooth=True), "smoothing"),
    ],
)
def test_refused_with_the_reason(changes, reason):
    assert reason in pallas.supports(dataclasses.replace(SPEC, **changes))


def test_older_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(hopper, "capability", lambda: "8.0")
    assert "compute capability 8.0" in pallas.supports(SPEC)


def weights(rng):
    dense = jnp.asarray(rng.normal(size=(256, 512)), jnp.float32)
    smooth = jnp.asarray(rng.uniform(0.5, 2, 512), jnp.float32)
    rotated = hadamard(dense * smooth[None], 128)
    low_rank = tuple(jnp.asarray(0.1 * rng.normal(size=s), jnp.bfloat16) for s in ((8, 512), (256, 8)))
    return {
        "int8": QuantizedWeight(quantize_int8(dense)),
        "nvfp4, grouped": QuantizedWeight(quantize_nvfp4(dense), act_group=128),
        "rotated and smooth": QuantizedWeight(quantize_nvfp4(rotated), smooth=smooth, rotated=128),
        "low rank": QuantizedWeight(quantize_int8(dense), low_rank=low_rank),
        "few tokens": QuantizedWeight(quantize_nvfp4(dense)),
    }


BEFORE = {
    "nothing": lambda rng: None,
    "gelu": lambda rng: Gelu(),
    "norm": lambda rng: LayerNorm(*vectors(rng, 512)),
    "modulated": lambda rng: LayerNorm(*vectors(rng, 1, 1, 512)),
    "modulated by video": lambda rng: LayerNorm(*vectors(rng, 2, 1, 512)),
}


def vectors(rng, *shape):
    return jnp.asarray(rng.uniform(0.2, 2, shape), jnp.float32), jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("name", ["int8", "nvfp4, grouped", "rotated and smooth", "low rank", "few tokens"])
def test_as_close_to_the_dense_product_as_xla(rng, name, before):
    """Rounding smoothed activations to bf16 before INT8 adds a hundredth of its variance, hence far below a tenth."""
    w, act = weights(rng)[name], None if name == "few tokens" else "int8"
    x = jnp.asarray(rng.normal(size=(2, 9, 512)), jnp.bfloat16)
    bias = jnp.asarray(rng.normal(size=256), jnp.float32)
    assert pallas.supports(dataclasses.replace(describe(x, w, act), platform="gpu")) is None
    before = BEFORE[before](rng)
    oracle = np.asarray(reference.run(applied(before, x.astype(jnp.float32)), w, bias, None))
    error = lambda y: np.linalg.norm(np.asarray(y, np.float32) - oracle) / np.linalg.norm(oracle)
    ours = pallas.run(x, w, bias, act, before, None)
    assert ours.shape == oracle.shape
    assert ours.dtype == x.dtype
    assert error(ours) <= 1.1 * error(xla.run(applied(before, x), w, bias, act)) + 1e-5


AFTER = {
    "added": lambda rng: Added(residual(rng)),
    "gated": lambda rng: Added(residual(rng), vectors(rng, 256)[1]),
    "gated by modulation": lambda rng: Added(residual(rng), vectors(rng, 1, 1, 256)[1]),
    "gated by video": lambda rng: Added(residual(rng), vectors(rng, 2, 1, 256)[1]),
}


def residual(rng):
    return jnp.asarray(10 * rng.normal(size=(2, 9, 256)), jnp.bfloat16)


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("name", ["int8", "nvfp4, grouped", "rotated and smooth", "low rank", "few tokens"])
def test_in_the_kernel_nothing_is_rounded_before_it_is_added(rng, name, after):
    """A product that is rounded first is off by 2^-8 of itself at most, as is each of the two results; 2^-20 is for f32
    sums. What the kernel has no place for is added after it, to the same bits.
    """
    w, act, after = weights(rng)[name], None if name == "few tokens" else "int8", AFTER[after](rng)
    x, bias = jnp.asarray(rng.normal(size=(2, 9, 512)), jnp.bfloat16), jnp.asarray(rng.normal(size=256), jnp.float32)
    y = pallas.run(x, w, bias, act, None, None)
    ours, theirs = pallas.run(x, w, bias, act, None, after), added(after, y)
    fits = name not in ("low rank", "few tokens") and (after.gate is None or after.gate.size == 256)
    assert pallas._adds(after, w, act) == fits
    assert ours.dtype == theirs.dtype
    if not fits:
        np.testing.assert_array_equal(ours, theirs)
        return
    gated, ours, theirs = (np.asarray(a, np.float32) for a in (through_gate(after, y), ours, theirs))
    rounded = 2.0**-8 * (np.abs(gated) + np.abs(ours) + np.abs(theirs))
    assert (ours != theirs).any()
    assert (np.abs(ours - theirs) <= rounded + 2.0**-20 * np.abs(gated)).all()


def through_gate(after, y):
    return added(Added(jnp.zeros(y.shape), after.gate), y.astype(jnp.float32))


@pytest.mark.parametrize("after", ["added", "gated"])
def test_which_is_closer_to_the_sum_in_f32(rng, after):
    w, after = weights(rng)["int8"], AFTER[after](rng)
    x, bias = jnp.asarray(rng.normal(size=(2, 9, 512)), jnp.bfloat16), jnp.asarray(rng.normal(size=256), jnp.float32)
    y, rounded = pallas._run(x, None, w, bias, "int8", None)
    values = rounded.codes.astype(jnp.float32) * rounded.scale[:, None]
    exact = np.asarray(reference.run(values, w, bias, None)).reshape(y.shape)
    exact = np.asarray(after.residual, np.float32) + np.asarray(through_gate(after, jnp.asarray(exact)))
    error = lambda found: np.linalg.norm(np.asarray(found, np.float32) - exact)
    assert error(pallas.run(x, w, bias, "int8", None, after)) < error(added(after, y))


@pytest.mark.parametrize("mapped", ["residual and gate", "nothing"])
def test_videos_at_once_are_added_each_to_its_own(rng, monkeypatch, mapped):
    """In `several.py` every video has a gate of its own, and inside the map it is one a channel."""
    monkeypatch.setattr(hopper, "refusal", lambda platform: None)
    w, x = weights(rng)["int8"], jnp.asarray(rng.normal(size=(2, 1, 9, 512)), jnp.bfloat16)
    after = Added(residual(rng)[:, None], vectors(rng, 2, 1, 1, 256)[1])
    axes = Added(0, 0) if mapped != "nothing" else None
    after = after if axes else jax.tree.map(lambda leaf: leaf[0], after)
    run = lambda x, after: linear(x, w, act="int8", after=after, implementation="pallas")
    found = jax.vmap(run, in_axes=(0, axes))(x, after)
    for video in range(2):
        each = jax.tree.map(lambda leaf, video=video: leaf[video], after) if axes else after
        np.testing.assert_array_equal(found[video], run(x[video], each))


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("name", ["int8", "nvfp4, grouped", "rotated and smooth", "few tokens"])
def test_it_measures_what_it_multiplies(rng, name, before):
    """Not smoothed, and perhaps not rounded to bf16 yet."""
    before = BEFORE[before](rng)
    w, act = weights(rng)[name], None if name == "few tokens" else "int8"
    x = jnp.asarray(rng.normal(size=(2, 9, 512)), jnp.bfloat16)
    after = AFTER["gated"](rng)
    y, seen = pallas.measure(x, w, None, act, before, after)
    np.testing.assert_array_equal(y, pallas.run(x, w, None, act, before, after))
    for found, expected in zip(seen, magnitudes(applied(before, x)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2**-8 if before else 1e-5)


FUSED = ("int8", "nvfp4, grouped", "rotated", "rotated and smooth")


@pytest.mark.parametrize("before", ["norm", "modulated"])
@pytest.mark.parametrize("name", FUSED)
def test_a_norm_in_the_kernel_gives_the_codes_of_a_norm_before_it(rng, name, before):
    """Both round to bf16 what they quantize, from values that differ by their f32 sums, some 2^-20. So one of a
    thousand comes out as the neighbouring bf16 number, at most half a code away, and may have the neighbouring code.

    In front of smoothing only the plain one rounds. Three roundings that differ, by 0.16 % each (root mean square), are
    a tenth of a code where codes are 38, and one of twelve lies so close to the middle between two.
    """
    stored = weights(rng) | {"rotated": QuantizedWeight(quantize_int8(jnp.ones((256, 512))), rotated=128)}
    w, before, seen = stored[name], BEFORE[before](rng), []
    x = jnp.asarray((rng.normal(size=(2, 100, 512)) + 0.5) * np.exp(rng.normal(size=(1, 100, 1))), jnp.bfloat16)
    for arguments in ((x, before), (applied(before, x), None)):
        rounded = pallas._run(*arguments, w, None, "int8", None)[1]
        seen.append([np.asarray(part, np.float32) for part in (rounded.codes, rounded.scale)])
    codes, scales = zip(*seen, strict=True)
    assert np.abs(codes[0] - codes[1]).max() <= 1
    assert (codes[0] != codes[1]).mean() < (2**-3 if w.smooth is not None else 2**-9)
    np.testing.assert_allclose(*scales, rtol=2**-7)


@pytest.mark.parametrize(
    ("name", "before", "passes"),
    [
        *[(name, before, True) for name in ("int8", "rotated and smooth") for before in ("norm", "modulated")],
        ("int8", "gelu", True),
        ("rotated and smooth", "gelu", False),  # the kernel's factors come before GELU
        ("low rank", "modulated", False),  # the branch reads it too
        ("int8", "modulated by video", False),
        ("few tokens", "modulated", False),
    ],
)
def test_what_the_kernel_has_no_place_for_is_done_before_it(rng, name, before, passes):
    w, act = weights(rng)[name], None if name == "few tokens" else "int8"
    x, before = jnp.asarray(rng.normal(size=(2, 9, 512)), jnp.bfloat16), BEFORE[before](rng)
    prepared, left = pallas._prepared(x, w, act, before)
    assert left is (before if passes else None)
    np.testing.assert_array_equal(prepared, x if passes else applied(before, x))


def test_nvfp4_weights_are_expanded_by_our_kernel(rng):
    """Where k allows it. Elsewhere, and on a CPU, the same numbers come from XLA."""
    x = jnp.asarray(rng.normal(size=(9, 512)), jnp.bfloat16)
    lowered = jax.jit(lambda x, w, after: pallas.run(x, w, None, "int8", Gelu(), after)).trace(
        x, weights(rng)["nvfp4, grouped"], Added(residual(rng)[0], jnp.ones(256))
    )
    # Quantizing the activations and GELU before it, expanding the weight, their product and the sum after it.
    assert lowered.lower(lowering_platforms=("cuda",)).as_text().count("mosaic_gpu_v2(") == 3
