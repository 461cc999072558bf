"""What every quantizer is: a frozen set of options, and a pure function of one weight matrix.

    minmax(weight, statistics, MinMax("int8"))      the function
    MinMax("int8")(weight, statistics)              the same, with the options as a value to nest and to store

Methods nest in the order in which their parts act on an activation: smoothing, the low-rank branch, rotation, rounding.
SmoothQuant over SVDQuant over QuaRot over GPTQ over a scale search is `SmoothQuant(weights=SVDQuant(weights=…))`.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from sixbit_jax.formats import QuantizedWeight
from sixbit_jax.formats.checks import require_float
from sixbit_jax.quantizers.statistics import Statistics

Weight: TypeAlias = jax.Array | jax.ShapeDtypeStruct
Method: TypeAlias = Callable[..., QuantizedWeight]


class AbstractQuantizer(abc.ABC):
    """A method with its options. Subclasses are frozen dataclasses, so they can be static arguments and JSON."""

    @abc.abstractmethod
    def __call__(self, weight: Weight, statistics: Statistics | None = None) -> QuantizedWeight:
        """The weight (…, n, k), or its shape, as this method quantizes it."""


def per_matrix(default: Callable[[], Any]) -> Callable[[Method], Method]:
    """Lift a method for one f32 matrix (n, k) to any float dtype, to leading axes, and to shapes without values.

    Leading axes are mapped one matrix at a time, so that a stack of layers needs the scratch memory of one. `default`
    makes the options of a call that gives none.
    """

    def lift(method: Method) -> Method:
        @functools.partial(jax.jit, static_argnames="options")
        def run(weight: Any, statistics: Any, options: Any) -> QuantizedWeight:
            if weight.ndim == 2:
                return method(weight.astype(jnp.float32), statistics, options)
            return lax.map(lambda layer: run(*layer, options), (weight, statistics))

        @functools.wraps(method)
        def lifted(weight: Any, statistics: Any = None, options: Any = None) -> QuantizedWeight:
            _check(method.__name__, weight, statistics)
            options = default() if options is None else options
            if isinstance(weight, jax.ShapeDtypeStruct):
                return jax.eval_shape(functools.partial(run, options=options), weight, statistics)
            return run(weight, statistics, options)

        return lifted

    return lift


def add_part(method: str, inner: QuantizedWeight, **part: Any) -> QuantizedWeight:
    """`inner` with one more part in front, if it has none that belongs before it."""
    order = ("smooth", "low_rank", "rotated")
    (name,) = part
    taken = [other for other in order[: order.index(name) + 1] if getattr(inner, other) is not None]
    if taken:
        raise ValueError(f"{method}: its inner method already adds {taken[0]}; methods nest as {' > '.join(order)}")
    return dataclasses.replace(inner, **part)


def _check(method: str, weight: Weight, statistics: Statistics | None) -> None:
    require_float(method, weight, "the weight")
    if weight.ndim < 2:
        raise ValueError(f"{method}: the weight has shape {weight.shape}; it must be (…, n, k)")
    absmax = None if statistics is None else statistics.absmax
    if absmax is not None and absmax.shape != (*weight.shape[:-2], weight.shape[-1]):
        raise ValueError(f"{method}: statistics.absmax {absmax.shape} does not fit a weight {weight.shape}")
