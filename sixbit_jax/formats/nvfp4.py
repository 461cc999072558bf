"""NVFP4: E2M1 codes with two levels of scales.

    value = e2m1(code) × block_scale × tensor_scale
            4 bits       e4m3, one for    f32, one for the
                         16 along k       whole tensor

The tensor scale puts the largest block scale at 448, the largest e4m3. Without it the block scales of ordinary weights
fall below e4m3's normal range and the format loses up to 20 dB.

The steps, which other implementations repeat bit by bit:

1. `tensor_scale = amax / (448 · 6)`; 1 for a tensor of zeros.
2. `block_scale = e4m3(block_amax / 6 / tensor_scale)`, clamped to [2⁻⁶, 448]: the normal range.
3. `codes = e2m1(x · ((1 / tensor_scale) / block_scale))`, to nearest, ties to even.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Shaped

from sixbit_jax.formats.checks import pad_to_multiple, require_float
from sixbit_jax.formats.e2m1 import E2M1_MAX, encode_e2m1
from sixbit_jax.formats.e4m3 import decode_e4m3
from sixbit_jax.formats.packing import pack_nibbles
from sixbit_jax.formats.rounding import SMALLEST_AMAX, divide
from sixbit_jax.formats.storage import stored_bytes

BLOCK = 16
E4M3_MAX = 448.0
E4M3_SMALLEST_NORMAL = 2.0**-6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NVFP4Tensor:
    """A packed NVFP4 array.

    The axes of `tensor_scale` are the leading axes of the array: none when all of it shares one scale, `(l,)` for
    stacked layers with one each, `(l, n)` for one per row.
    """

    packed: Any  # u8 (…, k / 2): two codes a byte, low nibble first
    block_scale: Any  # e4m3 (…, k / 16)
    tensor_scale: Any  # f32 (leading axes)

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.packed.shape[:-1], 2 * self.packed.shape[-1])

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """The type of a code."""
        return jnp.dtype(jnp.float4_e2m1fn)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and of both scales."""
        return stored_bytes(self)


def quantize_nvfp4(
    x: Shaped[Array, "..."],
    *,
    tensor_scale: Float32[Array, "..."] | float | None = None,
    pad: bool = False,
    key: Array | None = None,
) -> NVFP4Tensor:
    """`x` in blocks of 16 along its last axis.

    `tensor_scale` fixes the outer scale instead of measuring it: a scalar, or one value per leading index (see
    `NVFP4Tensor`). Blocks too large for it saturate. `pad` fills an incomplete last block with zeros; the result has
    the padded length. With a `key`, codes are rounded stochastically; scales never are.

    No gradient passes (`straight_through` lets it). A NaN or infinity makes the tensor scale NaN or infinite, so that
    every dequantized value is NaN; `quantize_nvfp4(check_finite(x))` names its position instead.

    >>> import jax.numpy as jnp
    >>> t = quantize_nvfp4(jnp.arange(32.0).reshape(2, 16))
    >>> t.shape, t.packed.shape, t.block_scale.shape, t.nbytes
    ((2, 16), (2, 8), (2, 1), 22)
    """
    require_float("quantize_nvfp4", x)
    x = pad_to_multiple("quantize_nvfp4", lax.stop_gradient(x), BLOCK, pad)
    return _quantize(x, None if tensor_scale is None else _given_scale(tensor_scale, x), key)


# Inlined into programs that call it; called alone, it is one program instead of thirty operations.
@functools.partial(jax.jit, inline=True)
def _quantize(
    x: Float[Array, "..."], tensor_scale: Float32[Array, "..."] | None, key: Array | None = None
) -> NVFP4Tensor:
    x = x.astype(jnp.float32)
    scale = nvfp4_tensor_scale(x) if tensor_scale is None else tensor_scale
    return encode_nvfp4(x, nvfp4_block_scale(x, scale), scale, key)


def nvfp4_tensor_scale(x: Float[Array, "..."], axis_name: str | tuple[str, ...] | None = None) -> Float32[Array, ""]:
    """Step 1: the outer scale of a tensor, or of all its shards along the mesh axes of `axis_name`.

    >>> import jax.numpy as jnp
    >>> float(nvfp4_tensor_scale(jnp.array([1.0, -2688.0])))
    1.0
    """
    amax = jnp.max(jnp.abs(lax.stop_gradient(x).astype(jnp.float32)))
    # Not the maximum of the shards' scales: a shard of zeros has the scale 1.
    amax = amax if axis_name is None else lax.pmax(amax, axis_name)
    return jnp.where(amax < SMALLEST_AMAX, 1.0, divide(amax, E4M3_MAX * E2M1_MAX))


def nvfp4_block_scale(
    x: Float[Array, "*batch k"], tensor_scale: Float32[Array, "..."], largest: float = E2M1_MAX
) -> Float[Array, "*batch g"]:
    """Step 2: the e4m3 scales that put the largest value of each block at `largest`.

    >>> import jax.numpy as jnp
    >>> nvfp4_block_scale(jnp.full((1, 16), 3.0), jnp.float32(1.0))
    Array([[0.5]], dtype=float8_e4m3fn)
    """
    amax = jnp.max(jnp.abs(in_blocks(x.astype(jnp.float32))), axis=-1)
    scale = divide(divide(amax, largest), lead(tensor_scale, amax.ndim))
    return jnp.clip(scale, E4M3_SMALLEST_NORMAL, E4M3_MAX).astype(jnp.float8_e4m3fn)


def encode_nvfp4(
    x: Float[Array, "*batch k"],
    block_scale: Float[Array, "*batch g"],
    tensor_scale: Float32[Array, "..."],
    key: Array | None = None,
) -> NVFP4Tensor:
    """Step 3: `x` under given scales.

    >>> import jax.numpy as jnp
    >>> encode_nvfp4(jnp.full((1, 16), 3.0), jnp.full((1, 1), 0.5, jnp.float8_e4m3fn), jnp.float32(1.0)).packed[0, 0]
    Array(119, dtype=uint8)
    """
    blocks = in_blocks(x.astype(jnp.float32))
    # Multiplied by the reciprocal, not divided: what the GPU kernels of other projects do, to the bit.
    outer = lead(divide(jnp.ones_like(tensor_scale), tensor_scale), block_scale.ndim)
    inverse = divide(jnp.broadcast_to(outer, block_scale.shape), decode_e4m3(block_scale))
    codes = encode_e2m1(blocks * inverse[..., None], key)
    return NVFP4Tensor(pack_nibbles(codes.reshape(x.shape)), block_scale, tensor_scale)


def in_blocks(x: Shaped[Array, "*batch k"]) -> Shaped[Array, "*batch g 16"]:
    """The last axis cut into blocks."""
    x = pad_to_multiple("nvfp4", x, BLOCK, pad=False)
    return x.reshape(*x.shape[:-1], x.shape[-1] // BLOCK, BLOCK)


def lead(scale: Float32[Array, "..."], ndim: int) -> Float32[Array, "..."]:
    """A scale over leading axes, with axes of one behind them up to `ndim`."""
    return scale.reshape(*scale.shape, *(1,) * (ndim - scale.ndim))


def _given_scale(tensor_scale: Float32[Array, "..."] | float, x: Float[Array, "..."]) -> Float32[Array, "..."]:
    scale = jnp.asarray(tensor_scale, jnp.float32)
    if scale.shape != x.shape[: scale.ndim] or scale.ndim == x.ndim:
        raise ValueError(f"quantize_nvfp4: tensor_scale {scale.shape} must have leading axes of x {x.shape}, or none")
    return scale
