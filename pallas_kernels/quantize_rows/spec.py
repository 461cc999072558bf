"""What to compute, and the arithmetic that kernel and emulation share."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from pallas_kernels.quantize_rows.config import GROUP

INT8_MAX, E4M3_MAX, E2M1_MAX = 127.0, 448.0, 6.0
E4M3_SMALLEST = 2.0**-6  # the smallest normal
BLOCK = 16  # values that share a scale in NVFP4
SMALLEST_AMAX = 1e-30  # below it a row counts as zeros, with scale 1
# Adding 1.5 · 2^23 to a value below 2^22 rounds it to an integer, half to even, and leaves it in the low bits.
_MAGIC = 12582912.0


@dataclasses.dataclass(frozen=True)
class Spec:
    """What the kernel does to a row, in this order: norm, factor and offset by channel, activation, rotation."""

    rotate: bool = False
    activation: str | None = None
    grouped: bool = False
    norm: str | None = None  # "layer" or "rms"
    eps: float = 1e-6
    affine: bool = False
    form: str = "int8"  # or "nvfp4"

    @property
    def changes(self) -> bool:
        """Whether what is rotated differs from x."""
        return self.affine or self.norm is not None or self.activation is not None


def code_scale(amax: Array, spec: Spec) -> tuple[Array, Array]:
    """The scale of the codes, and what a rotated value is multiplied by to become one; in NVFP4 the row's outer scale.

    Rotated values lack the factor 1 / √128 that makes the rotation orthonormal; it is in here.
    """
    norm = GROUP**-0.5 if spec.rotate else 1.0
    largest = E4M3_MAX * E2M1_MAX if spec.form == "nvfp4" else INT8_MAX
    scale = jnp.where(amax * norm < SMALLEST_AMAX, 1.0, amax * (norm / largest))
    return scale, norm / scale


def moments(total: Array, squares: Array, k: int, spec: Spec) -> tuple[Array, Array]:
    """From Σx and Σx² of rows of k: what a norm subtracts, and what it multiplies by."""
    mean_square = squares * (1 / k)
    if spec.norm == "rms":
        return jnp.zeros_like(total), lax.rsqrt(mean_square + spec.eps)
    mean = total * (1 / k)
    return mean, lax.rsqrt(jnp.maximum(mean_square - mean * mean, 0.0) + spec.eps)


def rounded_to_codes(x: Array) -> Array:
    """x rounded half to even, as s8. |x| <= 127.5: no clamp, one addition and no conversion."""
    return lax.bitcast_convert_type(x + _MAGIC, jnp.int32).astype(jnp.int8)


def signs(size: int) -> np.ndarray:
    """Sylvester's matrix of ±1."""
    i = np.arange(size)
    return 1 - 2 * (np.bitwise_count(i[:, None] & i[None]).astype(np.int8) & 1)
