"""A linear whose route is chosen while the program runs."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jaxtyping import Array, Float, Int

from sixbit_jax.linear.after import Added
from sixbit_jax.linear.api import linear, linear_and_magnitudes
from sixbit_jax.linear.before import Before
from sixbit_jax.linear.spec import Weight
from sixbit_jax.routes import Route


def routed_linear(
    x: Float[Array, "... k"],
    w: Weight,
    bias: Float[Array, " n"] | None,
    routes: Sequence[Route],
    index: Int[Array, ""],
    *,
    before: Before | None = None,
    after: Added | None = None,
    measured: bool = False,
) -> Any:
    """`linear` under `routes[index]`, and if asked also the `Magnitudes` of what it multiplies.

    One compiled branch per route; a single route costs no branch at all. Magnitudes are row by row: what becomes of
    them is small kernels, and in a branch each of these would wait for the one before.

    Routes speak of quantized weights. One that its recipe keeps dense multiplies in its own dtype under all of them.

    >>> import jax.numpy as jnp
    >>> from sixbit_jax.formats import quantize_nvfp4
    >>> x, w = jnp.full((1, 16), 0.9), quantize_nvfp4(jnp.ones((1, 16)))
    >>> four_bits, sixteen = Route("nvfp4"), Route(None)
    >>> [routed_linear(x, w, None, (four_bits, sixteen), jnp.int32(index)).shape for index in (0, 1)]
    [(1, 1), (1, 1)]
    """
    if isinstance(w, jax.Array):
        routes = [Route(None, route.implementation if route.act is None else None) for route in routes]
        routes = routes[:1] if len(set(routes)) == 1 else routes
    product = linear_and_magnitudes if measured else linear

    def branch(route: Route) -> Callable[..., Any]:
        return lambda x, w, bias, before, after: product(
            x, w, bias, act=route.act, before=before, after=after, implementation=route.implementation
        )

    branches = [branch(route) for route in routes]
    operands = (x, w, bias, before, after)
    return branches[0](*operands) if len(branches) == 1 else lax.switch(index, branches, *operands)
