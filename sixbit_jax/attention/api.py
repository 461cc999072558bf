"""The public op.

Tokens come before heads, as the projections leave them: `(b, q, a, c)`; no mask but a count of valid keys.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.columns import Columns, as_array
from sixbit_jax.attention import cudnn, pallas, reference, xla
from sixbit_jax.attention.before import NOTHING, Before, prepared
from sixbit_jax.dispatch import Choice, Implementation, choose

Heads: TypeAlias = Array | Columns


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
    """The static facts that decide whether an implementation can run."""

    batch: int
    heads: int
    queries: int
    keys: int
    valid_keys: int
    head_dim: int
    dtype: str
    platform: str


def _of_prepared(run: Callable[..., Array]) -> Callable[..., Array]:
    """An implementation that takes arrays, queries and keys finished, as one that takes `Columns` and `before`."""

    def run_finished(q: Heads, k: Heads, v: Heads, valid_keys: int, before: Before) -> Array:
        return run(*prepared(as_array(q), as_array(k), before), as_array(v), valid_keys)

    return run_finished


# In order of preference. The oracle supports everything, so what follows it runs only when named.
_IMPLEMENTATIONS = {
    "cudnn": Implementation(cudnn.supports, _of_prepared(cudnn.run)),
    "xla": Implementation(xla.supports, _of_prepared(xla.run)),
    "reference": Implementation(reference.supports, _of_prepared(reference.run)),
    "int8": Implementation(pallas.supports, pallas.run),
    "int8_pv16": Implementation(pallas.supports, pallas.run_pv16),
}


def implementations() -> tuple[str, ...]:
    """The names `attention(implementation=…)` takes: exact ones, fastest first, then those that round.

    >>> implementations()[:3]
    ('cudnn', 'xla', 'reference')
    """
    return tuple(_IMPLEMENTATIONS)


def attention(
    q: Float[Array, "b q a c"] | Columns,
    k: Float[Array, "b k a c"] | Columns,
    v: Float[Array, "b k a c"] | Columns,
    *,
    valid_keys: int | None = None,
    before: Before = NOTHING,
    implementation: str | Sequence[str] | None = None,
) -> Float[Array, "b q a c"]:
    """Full attention with scale `c**-0.5` and an f32 softmax; keys from `valid_keys` on are padding and never seen.

    Queries and keys are normed and rotated first as `before` says: INT8 attention does it where it rounds them. What a
    merged projection left side by side may come as `Columns`: INT8 attention reads them there, the others cut them out.

    `implementation` names one that must run or raise, or several of which the first that can runs; `None` takes the
    fastest exact one that supports the case (see `explain`).

    >>> import jax.numpy as jnp
    >>> q = jnp.ones((1, 6, 2, 8))
    >>> attention(q, q, q, valid_keys=5).shape
    (1, 6, 2, 8)
    """
    valid_keys = k.shape[1] if valid_keys is None else valid_keys
    if not 0 < valid_keys <= k.shape[1]:
        raise ValueError(f"attention: valid_keys={valid_keys} is not within 1..{k.shape[1]}")
    choice = choose("attention", _IMPLEMENTATIONS, _spec(q, k, valid_keys), implementation)
    return _IMPLEMENTATIONS[choice.name].run(q, k, v, valid_keys, before)


def explain(
    q: jax.ShapeDtypeStruct | Array,
    k: jax.ShapeDtypeStruct | Array,
    valid_keys: int | None = None,
    implementation: str | Sequence[str] | None = None,
) -> Choice:
    """Which implementation `attention` would pick for these operands, and why not the ones before it.

    >>> import jax, jax.numpy as jnp
    >>> q = jax.ShapeDtypeStruct((1, 6, 2, 8), jnp.float32)
    >>> explain(q, q).name
    'xla'
    """
    spec = _spec(q, k, k.shape[1] if valid_keys is None else valid_keys)
    return choose("attention", _IMPLEMENTATIONS, spec, implementation)


def _spec(q: jax.ShapeDtypeStruct | Heads, k: jax.ShapeDtypeStruct | Heads, valid_keys: int) -> AttentionSpec:
    b, queries, heads, head_dim = q.shape
    dtype = jnp.dtype(q.dtype).name
    return AttentionSpec(b, heads, queries, k.shape[1], valid_keys, head_dim, dtype, jax.default_backend())
