"""The public op.

Weights are `(n, k)`, as PyTorch stores them: the contracted axis comes last, which is also the axis quantized formats
group.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sixbit_jax.dispatch import Choice, Implementation, choose
from sixbit_jax.linear import reference, xla


@dataclasses.dataclass(frozen=True)
class LinearSpec:
    """The static facts that decide whether an implementation can run: rows, sizes, number formats and where it runs."""

    m: int
    k: int
    n: int
    x: str
    w: str
    act: str | None
    platform: str


# In order of preference.
_IMPLEMENTATIONS = {
    "xla": Implementation(xla.supports, xla.run),
    "reference": Implementation(reference.supports, reference.run),
}


def implementations() -> tuple[str, ...]:
    """The names `linear(implementation=…)` takes, fastest first."""
    return tuple(_IMPLEMENTATIONS)


def linear(
    x: Float[Array, "... k"],
    w: Float[Array, "n _k"],
    bias: Float[Array, " n"] | None = None,
    *,
    act: str | None = None,
    implementation: str | None = None,
) -> Float[Array, "... n"]:
    """`x @ w.T + bias`, accumulated in f32 and returned in `x.dtype`.

    `implementation` names one that must run or raise; `None` takes the fastest that supports the case (see `explain`).

    >>> import jax.numpy as jnp
    >>> linear(jnp.ones((2, 3)), jnp.ones((4, 3)), jnp.zeros(4)).shape
    (2, 4)
    """
    if x.shape[-1] != w.shape[-1]:
        raise ValueError(f"linear: x ends in {x.shape[-1]} features, w expects {w.shape[-1]} (w is (n, k))")
    choice = choose("linear", _IMPLEMENTATIONS, _spec(x, w, act), implementation)
    return _IMPLEMENTATIONS[choice.name].run(x, w, bias)


def explain(x: jax.ShapeDtypeStruct | Array, w: jax.ShapeDtypeStruct | Array, *, act: str | None = None) -> Choice:
    """Which implementation `linear` would pick for these operands, and why not the ones before it.

    >>> import jax, jax.numpy as jnp
    >>> str(explain(jax.ShapeDtypeStruct((2, 3), jnp.float32), jax.ShapeDtypeStruct((4, 3), jnp.float32)))
    'xla'
    """
    return choose("linear", _IMPLEMENTATIONS, _spec(x, w, act))


def _spec(x: jax.ShapeDtypeStruct | Array, w: jax.ShapeDtypeStruct | Array, act: str | None) -> LinearSpec:
    rows = 1
    for size in x.shape[:-1]:
        rows *= size
    return LinearSpec(
        rows, w.shape[1], w.shape[0], jnp.dtype(x.dtype).name, jnp.dtype(w.dtype).name, act, jax.default_backend()
    )
