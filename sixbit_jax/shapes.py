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

from typing import Any, TypeAlias

import jax

# A nested dict with string keys and arrays (or quantized tensors, or ShapeDtypeStructs) as leaves.
Params: TypeAlias = dict[str, Any]
Array: TypeAlias = jax.Array


def tree_path(path: tuple[Any, ...]) -> str:
    """The slash-separated name of a leaf, as recipes, manifests and messages write it.

    >>> import jax
    >>> [tree_path(path) for path, _ in jax.tree_util.tree_leaves_with_path({"blocks": {"ffn_in": {"bias": 0}}})]
    ['blocks/ffn_in/bias']
    """
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
