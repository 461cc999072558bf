"""The NNX shell: small modules that name and initialise parameters, and the one function that turns a module into a
plain tree.

Only construction happens here. All mathematics is plain functions over the trees (`wan.py`, `umt5.py`, `vae.py`), so no
module carries state and nothing but pytrees travels through `jit`, `scan` and `cond`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sixbit_jax.shapes import Params

DType = Any


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, dtype: DType) -> jax.Array:
    """Lecun-normal values: variance 1 / fan_in."""
    return (jax.random.normal(rngs.params(), shape, jnp.float32) * fan_in**-0.5).astype(dtype)


class Linear(nnx.Module):
    """`weight (…, n, k)` and `bias (…, n)`; `stack` puts leading layer axes in front."""

    def __init__(self, k: int, n: int, *, rngs: nnx.Rngs, dtype: DType, stack: tuple[int, ...] = (), bias: bool = True):
        self.weight = nnx.Param(normal(rngs, (*stack, n, k), k, dtype))
        if bias:
            self.bias = nnx.Param(jnp.zeros((*stack, n), dtype))


class Norm(nnx.Module):
    """`scale (…, d)` and, for a LayerNorm with affine, `bias (…, d)`; always f32."""

    def __init__(self, d: int, *, stack: tuple[int, ...] = (), bias: bool = False):
        self.scale = nnx.Param(jnp.ones((*stack, d), jnp.float32))
        if bias:
            self.bias = nnx.Param(jnp.zeros((*stack, d), jnp.float32))


def to_tree(module: nnx.Module) -> Params:
    """The parameters of a module as a nested dict with string keys."""
    return _stringify(nnx.to_pure_dict(nnx.state(module, nnx.Param)))


def abstract(module: Callable[..., nnx.Module], config: Any, dtype: DType) -> Params:
    """The tree of `ShapeDtypeStruct`s that a module's parameters would have, without making a single array."""
    return jax.tree.map(lambda leaf: leaf, _traced(module, config, dtype))  # the caller's own


@functools.cache
def _traced(module: Callable[..., nnx.Module], config: Any, dtype: DType) -> Params:
    """Once: every draw of a parameter is traced, which takes longer than to read a small model."""
    return jax.eval_shape(lambda: to_tree(module(config, rngs=nnx.Rngs(0), dtype=dtype)))


def _stringify(tree: Any) -> Any:
    return {str(key): _stringify(value) for key, value in tree.items()} if isinstance(tree, dict) else tree
