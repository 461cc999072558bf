"""INT8: symmetric integers with an f32 scale.

    value = code × scale        codes from -127 to 127, scale = amax / 127

One scale per row (of a weight: per output channel; of an activation: per token), or per group along the last axis.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Shaped

from sixbit_jax.formats.checks import pad_to_multiple, require_float
from sixbit_jax.formats.rounding import SMALLEST_AMAX, divide, round_to_integer
from sixbit_jax.formats.storage import stored_bytes

INT8_MAX = 127.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Tensor:
    """Codes and scales. `scale` has the axes of `data`, each of length one or of as many groups as it has scales."""

    data: Any  # s8 (…, k)
    scale: Any  # f32 (…, 1) per row, (…, k / group) per group

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """The type of a code."""
        return jnp.dtype(jnp.int8)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and of the scales."""
        return stored_bytes(self)


def quantize_int8(
    x: Shaped[Array, "..."],
    *,
    axis: int | Sequence[int] = -1,
    group: int | None = None,
    pad: bool = False,
    key: Array | None = None,
) -> Int8Tensor:
    """`x` with one scale for all values along `axis`, or one per `group` values along the last axis.

    Codes are rounded half to even; with a `key`, stochastically. `pad` fills an incomplete last group with zeros. No
    gradient passes (`straight_through` lets it). A NaN makes its own row (or group) NaN, an infinity too.

    >>> import jax.numpy as jnp
    >>> t = quantize_int8(jnp.array([[1.0, -127.0], [0.0, 0.0]]))
    >>> t.data.tolist(), t.scale.tolist()
    ([[1, -127], [0, 0]], [[1.0], [1.0]])
    >>> quantize_int8(jnp.ones((3, 256)), group=128).scale.shape
    (3, 2)
    """
    require_float("quantize_int8", x)
    x = lax.stop_gradient(x)
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if group is None:
        return _quantize(x, key, axes)
    if axes != (-1,):
        raise ValueError(f"quantize_int8: groups run along the last axis; {axis=} cannot be grouped")
    return _quantize_groups(pad_to_multiple("quantize_int8", x, group, pad), key, group)


# Inlined into programs that call them; called alone, each is one program instead of twenty operations.
@functools.partial(jax.jit, static_argnums=2, inline=True)
def _quantize(x: Float[Array, "..."], key: Array | None, axes: tuple[int, ...]) -> Int8Tensor:
    return encode_int8(x, int8_scale(jnp.max(jnp.abs(x.astype(jnp.float32)), axis=axes, keepdims=True)), key)


@functools.partial(jax.jit, static_argnums=2, inline=True)
def _quantize_groups(x: Float[Array, "..."], key: Array | None, group: int) -> Int8Tensor:
    groups = x.astype(jnp.float32).reshape(*x.shape[:-1], x.shape[-1] // group, group)
    return encode_int8(x, int8_scale(jnp.max(jnp.abs(groups), axis=-1)), key)


def int8_scale(amax: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """The scale that puts `amax` at 127; 1 for zeros.

    >>> import jax.numpy as jnp
    >>> int8_scale(jnp.array([254.0, 0.0])).tolist()
    [2.0, 1.0]
    """
    return jnp.where(amax < SMALLEST_AMAX, 1.0, divide(amax, INT8_MAX))


def encode_int8(x: Float[Array, "*batch k"], scale: Float32[Array, "..."], key: Array | None = None) -> Int8Tensor:
    """`x` under given scales, shaped as in `Int8Tensor`.

    >>> import jax.numpy as jnp
    >>> encode_int8(jnp.array([0.5, 1.0, 600.0]), jnp.array([2.0])).data.tolist()
    [0, 0, 127]
    """
    # Multiplied by the reciprocal: one division a row.
    scaled = per_value(divide(jnp.ones_like(scale), scale), x.shape) * x.astype(jnp.float32)
    codes = jnp.clip(round_to_integer(scaled, key), -INT8_MAX, INT8_MAX)
    # A NaN would convert to an unspecified integer; its scale is NaN already.
    return Int8Tensor(jnp.where(jnp.isnan(codes), 0.0, codes).astype(jnp.int8), scale)


def per_value(scale: Float32[Array, "..."], shape: tuple[int, ...]) -> Float32[Array, "..."]:
    """Scales (or offsets) per row or group, repeated for each value of an array of `shape`.

    >>> import jax.numpy as jnp
    >>> per_value(jnp.array([[1.0, 2.0]]), (1, 4)).tolist()
    [[1.0, 1.0, 2.0, 2.0]]
    """
    group = shape[-1] // scale.shape[-1]
    grouped = (*shape[:-1], scale.shape[-1], group)
    return jnp.broadcast_to(scale[..., None], grouped).reshape(shape)
