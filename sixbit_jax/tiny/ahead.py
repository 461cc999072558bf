"""Compiling a program in the background while the device works on another one."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

# One at a time, in the order in which they will be needed.
_COMPILER = ThreadPoolExecutor(1, thread_name_prefix="compile")


def ahead(function: Callable[..., Any], *arguments: Any, donate: tuple[int, ...] = ()) -> Callable[..., Any]:
    """`function`, whose compilation for arguments of these shapes begins now; a call waits for its end.

    >>> import jax.numpy as jnp
    >>> double = ahead(lambda x: 2 * x, jax.ShapeDtypeStruct((2,), jnp.float32))
    >>> double(jnp.ones(2)).tolist()
    [2.0, 2.0]
    """
    # Traced here: jax's context managers, such as those of dtype promotion, hold for one thread.
    program = _COMPILER.submit(jax.jit(function, donate_argnums=donate).lower(*arguments).compile)
    return lambda *inputs: program.result()(*inputs)
