"""The axis letters used in every shape annotation of the package.

| letter | axis | letter | axis |
|---|---|---|---|
| b | batch | n | output features of a linear |
| t, h, w | latent (or pixel) frames, height, width | k | input features of a linear |
| c | channels (per head, in attention) | l | layers of a scanned stack |
| s | video tokens | e | CFG branches |
| p | prompt tokens | i | denoising steps |
| d | model width | q | query rows of an attention |
| a | attention heads | f | feed-forward width |

Annotations are `jaxtyping` strings (`Float[Array, "b s d"]`); the tests turn them into checks with beartype, nothing
checks at run time. Videos are channels-last: `(b, t, h, w, c)`.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

# A nested dict with string keys and arrays (or quantized tensors, or ShapeDtypeStructs) as leaves.
Params: TypeAlias = dict[str, Any]
Array: TypeAlias = jax.Array

# What models and cache policies agree on.
# x -> a block's output, and what was noted of its insides (a dict, often empty).
Compute: TypeAlias = Callable[[Array], tuple[Array, dict[str, Any]]]
# (compute, x, memory, decision) -> (x, memory, observation): a cache policy's wrapper round one block.
RunBlock: TypeAlias = Callable[[Compute, Array, Any, Any], tuple[Array, Any, Any]]
# (a wrapper, x, memory) -> (x, memory, observations stacked over layers): all blocks, each in that wrapper.
Blocks: TypeAlias = Callable[[RunBlock, Array, Any], tuple[Array, Any, Any]]
# (blocks, x, memory, decisions) -> the same: a cache policy's wrapper round the stack.
RunStack: TypeAlias = Callable[[Blocks, Array, Any, Any], tuple[Array, Any, Any]]


def tree_path(path: tuple[Any, ...]) -> str:
    """The slash-separated name of a leaf, as recipes, manifests and messages write it.

    >>> import jax
    >>> [tree_path(path) for path, _ in jax.tree_util.tree_leaves_with_path({"blocks": {"ffn_in": {"bias": 0}}})]
    ['blocks/ffn_in/bias']
    """
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
