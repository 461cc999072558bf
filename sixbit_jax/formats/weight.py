"""A quantized linear as one pytree, whatever the method that made it.

    y = Q(x̃) · (W + zero)ᵀ  +  (x̂ · downᵀ) · upᵀ
        x̂ = x / smooth                          `smooth` is absent: x̂ = x
        x̃ = hadamard(x̂, rotated)                `rotated` is None: x̃ = x̂
        W = dequantize(weight)                   already multiplied by smooth, then rotated
        Q = the route's activation format        one scale per token, or per `act_group` values of k

`zero` has one value for a whole row (or group) of W, so its part of the product is the sum of Q(x̃) over the row (or
group) times that value. The low-rank branch runs in 16 bits on the smoothed, unrotated activations.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from sixbit_jax.formats.dequantize import dequantize
from sixbit_jax.formats.hadamard import hadamard
from sixbit_jax.formats.int8 import per_value
from sixbit_jax.formats.storage import stored_bytes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    """The weight of a linear (…, n, k) and what to do with its activations; batch axes lead in every field."""

    weight: Any  # NVFP4Tensor, Int8Tensor or Int4Tensor (…, n, k)
    smooth: Any = None  # f32 (…, k): x is divided by it first
    zero: Any = None  # f32 (…, n, 1) or (…, n, k / group): added to the dequantized weight, in its units
    low_rank: Any = None  # (down (…, r, k), up (…, n, r)), bf16
    rotated: int | None = dataclasses.field(default=None, metadata={"static": True})  # block of the Hadamard rotation
    act_group: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """The type of a code."""
        return self.weight.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of every part."""
        return stored_bytes(self)


def main_weight(w: QuantizedWeight) -> Float32[Array, "*batch n k"]:
    """What the quantized activations meet: the dequantized weight with its zero point, smoothed and rotated.

    >>> import jax.numpy as jnp
    >>> from sixbit_jax.formats import quantize_int8
    >>> main_weight(QuantizedWeight(quantize_int8(jnp.ones((1, 4))), zero=jnp.full((1, 1), 0.5))).tolist()
    [[1.5, 1.5, 1.5, 1.5]]
    """
    values = dequantize(w.weight)
    return values if w.zero is None else values + per_value(w.zero, values.shape)


def effective_weight(w: QuantizedWeight) -> Float32[Array, "*batch n k"]:
    """The dense weight that the linear stands for when activations are not quantized.

    >>> import jax.numpy as jnp
    >>> from sixbit_jax.formats import quantize_int8
    >>> w = QuantizedWeight(quantize_int8(jnp.ones((3, 4))), smooth=jnp.full(4, 2.0))
    >>> effective_weight(w)[0].tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    values = main_weight(w)
    if w.rotated is not None:
        values = hadamard(values, w.rotated)
    if w.low_rank is not None:
        down, up = (part.astype(jnp.float32) for part in w.low_rank)
        values = values + jnp.matmul(up, down, precision=jax.lax.Precision.HIGHEST)
    return values if w.smooth is None else values / jnp.expand_dims(w.smooth, -2)


@dequantize.register(QuantizedWeight)
def _dequantize_weight(w: QuantizedWeight, dtype: Any = jnp.float32) -> Array:
    return effective_weight(w).astype(dtype)
