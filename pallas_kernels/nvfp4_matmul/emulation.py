"""What the fused kernel does, bit by bit, in plain JAX."""

import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels.mosaic import ceil_div
from pallas_kernels.nvfp4_matmul.config import CHUNK, SPAN

SCALE_BACK = 128.0  # decoded are values times 2^-7
SLICE = 64  # columns of a span that one warp takes


def emulate(x: Array, packed: Array, block_scale: Array) -> Array:
    """x bf16 (m, k) times the decoded weight, f32 (n, m), times 2^-7: the kernel's result, its parts added up."""
    weight = decoded(packed, block_scale)
    return lax.dot_general(weight, interleave(x).astype(jnp.float32), (((1,), (1,)), ((), ())), precision="highest")


def emulate_warps(x: Array, packed: Array, block_scale: Array, groups: int) -> Array:
    """The same (m, n) of `warps_sm90`: a sum of its own for each warp, added in their order. Columns stay in theirs."""
    spans = ceil_div(x.shape[1], SPAN)
    pad = lambda a: jnp.pad(a, ((0, 0), (0, spans * SPAN - a.shape[1]))).reshape(-1, spans, SPAN // SLICE, SLICE)
    x, weight = pad(x.astype(jnp.float32)), pad(in_order(packed, block_scale))
    sums = [
        jnp.einsum("mswk,nswk->wmn", x[:, group::groups], weight[:, group::groups], precision="highest")
        for group in range(groups)
    ]
    total = jnp.zeros(sums[0].shape[1:])
    for one in (one for group in sums for one in group):
        total = total + one
    return total


def interleave(x: Array) -> Array:
    """Columns into the order in which threads decode the weight's.

    Within 256 columns the bits of an index mean, from the top: half, lane (2), low, word, pair, i (2). The bits of the
    position are: half, low, word, i (2), lane (2), pair.
    """
    m, k = x.shape
    bits = x.reshape(m, k // CHUNK, 2, 4, 2, 2, 2, 2, 2)
    return bits.transpose(0, 1, 2, 4, 5, 7, 8, 3, 6).reshape(m, k)


def decoded(packed: Array, block_scale: Array) -> Array:
    """The weight as wgmma sees it, f32 (n, k) in the order of `interleave`, times 2^-7."""
    product = products(packed, block_scale)
    # A block is (half, lane, low) within a chunk; inside it come word, i (2) and pair.
    bits = product.reshape(product.shape[0], -1, 2, 4, 2, 2, 2, 2, 2)
    return bits.transpose(0, 1, 2, 4, 5, 6, 7, 3, 8).reshape(product.shape)


def in_order(packed: Array, block_scale: Array) -> Array:
    """The same with columns in their own order: those of a pair are four apart."""
    product = products(packed, block_scale)
    return product.reshape(product.shape[0], -1, 4, 2).swapaxes(2, 3).reshape(product.shape)


def products(packed: Array, block_scale: Array) -> Array:
    """Codes times scales, f32 (n, k), times 2^-7, pair by pair as they are decoded: in a word come i and pair."""
    n, k = packed.shape[0], 2 * packed.shape[1]
    words = lax.bitcast_convert_type(packed.reshape(n, k // 8, 4), jnp.int32)
    pairs = jnp.stack([pair_bits(words, i) for i in range(4)], axis=-1)  # (n, words, i)
    halves = jnp.stack([pairs & 0xFFFF, lax.shift_right_logical(pairs, jnp.full_like(pairs, 16))], axis=-1)
    value, value_exponent = mantissa_and_exponent(halves.reshape(n, k // 16, 16))
    scale, scale_exponent = mantissa_and_exponent(scale_bits(lax.bitcast_convert_type(block_scale, jnp.int8)))
    exponent = value_exponent + scale_exponent[..., None]
    return jnp.ldexp(value * scale[..., None], exponent).reshape(n, k)


def pair_bits(words: Array, i: int) -> Array:
    """Codes i and i + 4 of each word as two bf16, their values times 2^-126."""
    shifted = lax.shift_left(words, jnp.full_like(words, 4 * (3 - i)))
    magnitude = lax.shift_right_logical(shifted & 0x70007000, jnp.full_like(words, 6))
    return magnitude | (shifted & jnp.int32(-0x7FFF8000))


def scale_bits(scales: Array) -> Array:
    """The bf16 bits of a normal e4m3 times 2^119: mantissa and exponent in place, the exponent raised by 239."""
    return (scales.astype(jnp.int32) & 0x7F) * 16 + 0x7780


def mantissa_and_exponent(bits: Array) -> tuple[Array, Array]:
    """bf16 bits as a signed mantissa f32 and an exponent. By hand: a CPU may flush subnormals, tensor cores do not."""
    exponent, fraction = (bits >> 7) & 0xFF, (bits & 0x7F).astype(jnp.float32) / 128
    mantissa = jnp.where(exponent == 0, fraction, 1 + fraction)
    return jnp.where(bits & 0x8000, -mantissa, mantissa), jnp.maximum(exponent, 1) - 127
