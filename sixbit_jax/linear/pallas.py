"""Our own kernels, on Hopper GPUs: INT8 activations × quantized weights, and NVFP4 weights under few tokens.

    INT8 route    quantize_rows (LayerNorm, smoothing, GELU, rotation, scales; one pass over x) -> int8_matmul (scales,
                  bias, and a gated residual or a low-rank branch, in its epilogue); NVFP4 weights are expanded to INT8
                  just before
    A16 route     nvfp4_matmul: weights decoded in registers, where reading them is the cost

Smoothed activations are rounded to bf16 before they are rotated and rounded to INT8, where `xla` keeps f32 in between:
a few per cent more error than INT8 alone has.

What comes before a linear is f32 in that pass and rounded to bf16 before codes are made, as if it came by itself: codes
differ where f32 sums do, which lets a value tip to its neighbour in bf16. A norm's variance is Σx² / k less the squared
mean, from one look at x: a mean of ten deviations costs it seven of 24 bits. Measured is what is not rounded yet.

What comes after it is added to sums that are f32 still. Added later, y is rounded to bf16 first, so the results differ
by up to 2⁻⁸ |gate · y| before the last rounding, which may then part them by one value of bf16.

The kernels are imported where they run: Mosaic GPU takes a second to import, and a CPU has no use for it.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels import hopper
from sixbit_jax.formats import NVFP4Tensor, QuantizedTensor, QuantizedWeight, to_int8
from sixbit_jax.linear.after import Added, added
from sixbit_jax.linear.before import Before, Gelu, LayerNorm, applied
from sixbit_jax.linear.magnitude import Magnitudes, magnitudes
from sixbit_jax.linear.spec import LinearSpec

GROUP = 128  # columns that share a rotation, and may share an activation scale
WIDEST = 18432  # rows that the quantizing kernel holds, whatever it does to them
FEW_TOKENS = 208
FUSED_K = 256


def supports(spec: LinearSpec) -> str | None:
    return hopper.refusal(spec.platform) or (_integers(spec) if spec.act == "int8" else _few_tokens(spec))


def _integers(spec: LinearSpec) -> str | None:
    if not spec.quantized:
        return f"w is {spec.w}: INT8 activations need a quantized weight"
    if spec.x != "bfloat16":
        return f"x is {spec.x}, the quantizing kernel reads bfloat16"
    if spec.m == 0 or spec.k % GROUP or spec.n % GROUP:
        return f"{spec.m} x {spec.k} x {spec.n}: k and n must be multiples of {GROUP}, and there must be tokens"
    if spec.k > WIDEST:
        return f"rows of {spec.k}, the quantizing kernel holds {WIDEST}"
    if spec.w_groups != 1:
        return f"the weight has {spec.w_groups} scales a row, the kernel takes one"
    if spec.act_group not in (None, GROUP):
        return f"activations share scales in groups of {spec.act_group}, the kernel knows {GROUP}"
    if spec.rotated not in (None, GROUP):
        return f"the rotation is {spec.rotated} wide, the kernel's is {GROUP}"
    return "the weight has zero points" if spec.zero_groups else None


def _few_tokens(spec: LinearSpec) -> str | None:
    if spec.act is not None or spec.w != "nvfp4":
        return f'activations "{spec.act}" with a weight in {spec.w}: the kernels do INT8, and NVFP4 weights without act'
    if spec.smooth or spec.rotated or spec.zero_groups or spec.rank:
        return "an NVFP4 weight with smoothing, rotation or branches, without act"
    if spec.x != "bfloat16" or not 0 < spec.m <= FEW_TOKENS:
        return f"{spec.m} tokens of {spec.x}: NVFP4 weights are decoded in registers for 1 to {FEW_TOKENS} of bfloat16"
    if spec.k % FUSED_K or spec.n % GROUP:
        return f"{spec.k} x {spec.n}: k must be a multiple of {FUSED_K}, n of {GROUP}"
    return None


def run(
    x: Float[Array, "... k"],
    w: QuantizedWeight,
    bias: Float[Array, " n"] | None,
    act: str | None,
    before: Before | None,
    after: Added | None,
) -> Float[Array, "... n"]:
    return _run(*_prepared(x, w, act, before), w, bias, act, after)[0]


def measure(
    x: Float[Array, "... k"],
    w: QuantizedWeight,
    bias: Float[Array, " n"] | None,
    act: str | None,
    before: Before | None,
    after: Added | None,
) -> tuple[Float[Array, "... n"], Magnitudes]:
    x, before = _prepared(x, w, act, before)
    y, rounded = _run(x, before, w, bias, act, after)
    if rounded is None or w.smooth is not None:  # the kernel sums what it rounds, and that is smoothed
        return y, magnitudes(applied(before, x))
    return y, Magnitudes(rounded.total, rounded.largest)


def _prepared(x: Array, w: QuantizedWeight, act: str | None, before: Before | None) -> tuple[Array, Before | None]:
    """x, and what is left to the quantizing kernel to do to it first."""
    if act is None or w.low_rank is not None or not _fits(before, w):
        return applied(before, x), None
    return x, before


def _fits(before: Before | None, w: QuantizedWeight) -> bool:
    """The kernel has one factor a channel, behind the norm and in front of GELU, the same in all rows."""
    if isinstance(before, LayerNorm):
        return before.factor.size == before.offset.size == w.shape[-1]
    return w.smooth is None


def _adds(after: Added | None, w: QuantizedWeight, act: str | None) -> bool:
    """The INT8 kernel has one gate a channel, the same in all rows, and one thing to add, which may be the branch."""
    if after is None or act is None or w.low_rank is not None:
        return False
    return after.gate is None or after.gate.size == w.shape[0]


def _run(
    x: Array, before: Before | None, w: QuantizedWeight, bias: Array | None, act: str | None, after: Added | None
) -> tuple[Array, Any]:
    """y, and x as it was quantized, if it was."""
    rows = x.reshape(-1, x.shape[-1])
    bias = None if bias is None else bias.astype(jnp.float32)
    inside, after = (after, None) if _adds(after, w, act) else (None, after)
    if act is None:
        y, rounded = _run_few_tokens(rows, w.weight, bias), None
    else:
        y, rounded = _run_integers(rows, before, w, bias, inside)
    return added(after, y.reshape(*x.shape[:-1], y.shape[-1])), rounded


def _run_few_tokens(x: Array, t: NVFP4Tensor, bias: Array | None) -> Array:
    from pallas_kernels.nvfp4_matmul import nvfp4_matmul

    return nvfp4_matmul(x, t.packed, t.block_scale, t.tensor_scale, bias=bias, out_dtype=x.dtype)


def _run_integers(
    x: Array, before: Before | None, w: QuantizedWeight, bias: Array | None, after: Added | None
) -> tuple[Array, Any]:
    from pallas_kernels.int8_matmul import int8_matmul
    from pallas_kernels.quantize_rows import quantize_rows

    factor = None if w.smooth is None else 1.0 / w.smooth
    rotate = w.rotated is not None
    rounded = quantize_rows(x, rotate=rotate, group=w.act_group, **_first(before, factor))
    # As in `xla`: expanded weights must not be computed out of the step loop, where they would all be kept.
    codes, stored = lax.optimization_barrier((rounded.codes, w.weight))
    weight, weight_scale = _as_int8(stored)
    last = _last(after) if w.low_rank is None else {"residual": _low_rank(x, factor, w)}
    y = int8_matmul(codes, weight, rounded.scale, weight_scale, bias=bias, out_dtype=x.dtype, **last)
    return y, rounded


def _first(before: Before | None, smoothing: Array | None) -> dict[str, Any]:
    """What x goes through before it is rotated, in the kernel's words. From norm to smoothing nothing is rounded."""
    if isinstance(before, Gelu):
        return {"activation": "gelu_tanh"}
    if before is None:
        return {"factor": smoothing}
    vectors = [vector.astype(jnp.float32).reshape(-1) for vector in (before.factor, before.offset)]
    if smoothing is not None:
        vectors = [vector * smoothing for vector in vectors]
    # As arrays of their own: where a layer's part of a stack lies, XLA would look up while it launches the kernel (its
    # dynamic slice fusion), and to copy some KB costs nothing.
    factor, offset = lax.optimization_barrier(vectors)
    return {"norm": "layer", "eps": before.eps, "factor": factor, "offset": offset}


def _last(after: Added | None) -> dict[str, Any]:
    """What becomes of the product, in the kernel's words."""
    if after is None:
        return {}
    residual = after.residual.reshape(-1, after.residual.shape[-1])
    return {"residual": residual, "gate": None if after.gate is None else after.gate.astype(jnp.float32).reshape(-1)}


def _as_int8(t: QuantizedTensor) -> tuple[Array, Array]:
    """(codes (n, k), a scale per row)"""
    if isinstance(t, NVFP4Tensor):
        from pallas_kernels.nvfp4_matmul import expand_to_int8

        return expand_to_int8(t.packed, t.block_scale, t.tensor_scale)
    codes = to_int8(t)
    return codes.data, codes.scale[:, 0]


def _low_rank(x: Array, factor: Array | None, w: QuantizedWeight) -> Array:
    """(x̂ · downᵀ) · upᵀ in 16 bits."""
    down, up = (part.astype(x.dtype) for part in w.low_rank)
    smoothed = x if factor is None else (x.astype(jnp.float32) * factor[None]).astype(x.dtype)
    return jnp.matmul(jnp.matmul(smoothed, down.T), up.T)
