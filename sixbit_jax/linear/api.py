"""The public op.

Weights are `(n, k)`, as PyTorch stores them: the contracted axis comes last, which is also the axis quantized formats
group.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from sixbit_jax.dispatch import Choice, Implementation, choose
from sixbit_jax.errors import nearest
from sixbit_jax.formats import QuantizedWeight, effective_weight
from sixbit_jax.linear import pallas, reference, xla
from sixbit_jax.linear.after import Added, added, check_after
from sixbit_jax.linear.before import Before, applied, check_before
from sixbit_jax.linear.checks import check_operands
from sixbit_jax.linear.magnitude import Magnitudes, magnitudes
from sixbit_jax.linear.spec import ACTIVATIONS, LinearSpec, Weight, describe, wrap


def _surrounded(run: Callable[..., Array]) -> Callable[..., Array]:
    """For implementations that want x as it is multiplied, and return the product."""
    return lambda x, w, bias, act, before, after: added(after, run(applied(before, x), w, bias, act))


# In order of preference.
_IMPLEMENTATIONS = {
    "pallas": Implementation(pallas.supports, pallas.run, pallas.measure),
    "xla": Implementation(xla.supports, _surrounded(xla.run)),
    "reference": Implementation(reference.supports, _surrounded(reference.run)),
}


def implementations() -> tuple[str, ...]:
    """The names `linear(implementation=…)` takes, in the order in which None tries them.

    >>> implementations()
    ('pallas', 'xla', 'reference')
    """
    return tuple(_IMPLEMENTATIONS)


def linear(
    x: Float[Array, "... k"],
    w: Weight,
    bias: Float[Array, " n"] | None = None,
    *,
    act: str | None = None,
    before: Before | None = None,
    after: Added | None = None,
    implementation: str | None = None,
) -> Float[Array, "... n"]:
    """`x @ w.T + bias`, accumulated in f32 (or, codes by codes, in s32) and returned in `x.dtype`.

    `w (n, k)` is an array, a quantized tensor, or a `QuantizedWeight`, whose smoothing, rotation and branches apply.
    `act` is the format its activations are rounded to, "int8", "int4" or "nvfp4"; None leaves them as they come.
    `before`, `Gelu()` or a `LayerNorm`, is applied to x first; a kernel that reads x to round it does both in one pass.
    `after`, an `Added`, makes it `residual + gate · y`, which a kernel that multiplies does before it rounds y.
    `implementation` names one that must run or raise; None takes the fastest that supports the case (see `explain`).

    A quantized product passes gradients straight through: to `x` and `before` as if nothing had been rounded, to `bias`
    and `after` exactly, to the weight none.

    >>> import jax.numpy as jnp
    >>> linear(jnp.ones((2, 3)), jnp.ones((4, 3)), jnp.zeros(4)).shape
    (2, 4)
    >>> from sixbit_jax.formats import quantize_nvfp4
    >>> linear(jnp.ones((2, 16)), quantize_nvfp4(jnp.ones((4, 16))), act="int8")[0].tolist()
    [16.0, 16.0, 16.0, 16.0]
    """
    w, name = _checked(x, w, bias, act, before, after, implementation)
    if isinstance(w, QuantizedWeight):
        return _straight_through(name, act, before, after, x, w, bias)
    return _IMPLEMENTATIONS[name].run(x, w, bias, act, before, after)


def measured_linear(
    x: Float[Array, "... k"],
    w: Weight,
    bias: Float[Array, " n"] | None = None,
    *,
    act: str | None = None,
    before: Before | None = None,
    after: Added | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "... n"], Float[Array, ""]]:
    """`linear`, and the outlier ratio of what it multiplies: the largest magnitude over the mean one. No gradients.

    A kernel that rounds x has seen all of it anyway and tells for nothing; elsewhere it is one more pass over x.

    >>> import jax.numpy as jnp
    >>> y, ratio = measured_linear(jnp.array([[1.0, -3.0]]), jnp.ones((1, 2)))
    >>> y.tolist(), float(ratio)
    ([[-2.0]], 1.5)
    """
    y, seen = linear_and_magnitudes(x, w, bias, act=act, before=before, after=after, implementation=implementation)
    return y, seen.ratio(x.size)


def linear_and_magnitudes(
    x: Float[Array, "... k"],
    w: Weight,
    bias: Float[Array, " n"] | None = None,
    *,
    act: str | None = None,
    before: Before | None = None,
    after: Added | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "... n"], Magnitudes]:
    """`measured_linear`, row by row of what it multiplies."""
    w, name = _checked(x, w, bias, act, before, after, implementation)
    chosen = _IMPLEMENTATIONS[name]
    if chosen.measure is not None:
        return chosen.measure(x, w, bias, act, before, after)
    if before is not None:
        # Measured and multiplied in two passes, and between them XLA would keep it in f32.
        x = lax.optimization_barrier(applied(before, x))
    return chosen.run(x, w, bias, act, None, after), magnitudes(x)


def explain(x: Any, w: Any, *, act: str | None = None) -> Choice:
    """Which implementation `linear` would pick for these operands, and why not the ones before it.

    >>> import jax, jax.numpy as jnp
    >>> explain(jax.ShapeDtypeStruct((2, 3), jnp.float32), jax.ShapeDtypeStruct((4, 3), jnp.float32)).name
    'xla'
    """
    check_operands(x, w)
    return _choose(x, wrap(w), act, None)


def spec(x: Any, w: Any, *, act: str | None = None) -> LinearSpec:
    """The facts that `linear` decides by.

    >>> import jax, jax.numpy as jnp
    >>> s = spec(jax.ShapeDtypeStruct((5, 2, 3), jnp.float32), jax.ShapeDtypeStruct((4, 3), jnp.float32))
    >>> s.m, s.k, s.n, s.w
    (10, 3, 4, 'float32')
    """
    return describe(x, wrap(w), act)


def _checked(
    x: Array,
    w: Weight,
    bias: Array | None,
    act: str | None,
    before: Before | None,
    after: Added | None,
    implementation: str | None,
) -> tuple[Weight, str]:
    """The weight as implementations take it, and the name of the one that runs."""
    check_operands(x, w, bias)
    check_before(before, x)
    check_after(after, x, w)
    w = wrap(w)
    return w, _choose(x, w, act, implementation).name


def _choose(x: Any, w: Any, act: str | None, implementation: str | None) -> Choice:
    if act is not None and act not in ACTIVATIONS:
        raise ValueError(f'linear: unknown activation format "{act}"; {nearest(act, ACTIVATIONS)}, or None')
    return choose("linear", _IMPLEMENTATIONS, describe(x, w, act), implementation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _straight_through(
    name: str,
    act: str | None,
    before: Before | None,
    after: Added | None,
    x: Array,
    w: QuantizedWeight,
    bias: Array | None,
) -> Float[Array, "... n"]:
    return _IMPLEMENTATIONS[name].run(x, w, bias, act, before, after)


def _forward(
    name: str,
    act: str | None,
    before: Before | None,
    after: Added | None,
    x: Array,
    w: QuantizedWeight,
    bias: Array | None,
) -> tuple[Array, Any]:
    # A gate's gradient needs the product by itself.
    y = _IMPLEMENTATIONS[name].run(x, w, bias, act, before, None)
    return added(after, y), (before, after, x, w, bias, y)


def _backward(
    name: str, act: str | None, kept: Any, dy: Float[Array, "... n"]
) -> tuple[Before | None, Added | None, Array, Any, Array | None]:
    before, after, x, w, bias, y = kept
    d_after, dy = jax.vjp(added, after, y)[1](dy)
    wide = dy.astype(jnp.float32)
    dx = jnp.einsum("...n,nk->...k", wide, effective_weight(w), precision=lax.Precision.HIGHEST).astype(x.dtype)
    d_before, dx = jax.vjp(applied, before, x)[1](dx)
    db = None if bias is None else wide.reshape(-1, wide.shape[-1]).sum(0).astype(bias.dtype)
    return d_before, d_after, dx, jax.tree.map(_no_gradient, w), db


def _no_gradient(leaf: Array) -> Any:
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)


_straight_through.defvjp(_forward, _backward)
