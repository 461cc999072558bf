"""The Hadamard rotation: it spreads outliers over a block, and costs additions only.

`H · H = 1` and `H = Hᵀ` for the normalised Sylvester matrix, so a linear stays what it was when activations and weight
are both rotated along k: `(x H)(W H)ᵀ = x Wᵀ`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32


def hadamard(x: Float[Array, "..."], block: int = 128, *, implementation: str = "matrix") -> Float[Array, "..."]:
    """`x` with each `block` of its last axis rotated: orthonormal, symmetric and its own inverse.

    Sums run in f32 and are rounded once, to `x.dtype`. `implementation` is "matrix" (a product with a matrix of ±1:
    tensor cores on a GPU, and the faster one on a CPU too) or "fast" (log2(block) rounds of additions).

    >>> import jax.numpy as jnp
    >>> hadamard(jnp.array([1.0, 2.0, 3.0, 4.0]), block=4).tolist()
    [5.0, -1.0, -2.0, 0.0]
    """
    if block < 1 or block & (block - 1):
        raise ValueError(f"hadamard: {block=} is not a power of two")
    if not x.ndim or x.shape[-1] % block:
        length = x.shape[-1] if x.ndim else 0
        hint = f"the largest that divides it is {length & -length}" if length else "it must have a length"
        raise ValueError(f"hadamard: the last axis of x {x.shape} is not a multiple of {block=}; {hint}")
    if implementation not in _IMPLEMENTATIONS:
        raise ValueError(
            f'hadamard: unknown implementation "{implementation}" (choices: {", ".join(_IMPLEMENTATIONS)})'
        )
    blocks = x.reshape(*x.shape[:-1], x.shape[-1] // block, block)
    return _rotate(blocks, implementation).reshape(x.shape)


@functools.partial(jax.jit, static_argnums=1, inline=True)
def _rotate(blocks: Float[Array, "*batch c"], implementation: str) -> Float[Array, "*batch c"]:
    rotated = _IMPLEMENTATIONS[implementation](blocks) * blocks.shape[-1] ** -0.5
    return rotated.astype(blocks.dtype)


def _matrix(x: Float[Array, "*batch c"]) -> Float32[Array, "*batch c"]:
    # Entries of ±1 are exact in every dtype; the factor that makes the rotation orthonormal comes after.
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT
    matrix = jnp.asarray(_signs(x.shape[-1]), x.dtype)
    return jnp.matmul(x, matrix, precision=precision, preferred_element_type=jnp.float32)


def _fast(x: Float[Array, "*batch c"]) -> Float32[Array, "*batch c"]:
    block, y = x.shape[-1], x.astype(jnp.float32)
    for width in (1 << level for level in range(block.bit_length() - 1)):
        pairs = y.reshape(*x.shape[:-1], block // (2 * width), 2, width)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        y = jnp.stack([first + second, first - second], axis=-2).reshape(x.shape)
    return y


def _signs(block: int) -> np.ndarray:
    """Sylvester's matrix of ±1: entry (i, j) is the parity of the bits that i and j share."""
    i = np.arange(block)
    shared = i[:, None] & i[None]
    return 1 - 2 * (np.bitwise_count(shared).astype(np.int8) & 1)


_IMPLEMENTATIONS: dict[str, Callable[[Array], Array]] = {"matrix": _matrix, "fast": _fast}
