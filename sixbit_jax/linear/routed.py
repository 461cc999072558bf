"""A linear whose route is chosen while the program runs."""

import functools
from collections.abc import Sequence

from jax import lax
from jaxtyping import Array, Float, Int

from sixbit_jax.linear.api import linear
from sixbit_jax.routes import Route


def routed_linear(
    x: Float[Array, "... k"],
    w: Float[Array, "n k"],
    bias: Float[Array, " n"] | None,
    routes: Sequence[Route],
    index: Int[Array, ""],
) -> Float[Array, "... n"]:
    """`linear` under `routes[index]`. One compiled branch per route; a single route costs no branch at all."""
    branches = [functools.partial(linear, act=r.act, implementation=r.implementation) for r in routes]
    if len(branches) == 1:
        return branches[0](x, w, bias)
    return lax.switch(index, branches, x, w, bias)
