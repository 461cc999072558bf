"""How much memory arrays take, whatever pytree they are in."""

import math
from typing import Any

import jax


def stored_bytes(tree: Any) -> int:
    """Bytes of all leaves, which may be abstract.

    >>> stored_bytes({"codes": jax.ShapeDtypeStruct((4, 8), "uint8"), "scale": jax.ShapeDtypeStruct((4,), "float32")})
    48
    """
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
