"""Is what was written what was read? Compares a checkpoint with its source through the table, the other way round."""

from collections.abc import Callable, Sequence

import numpy as np

from converters.read import Reader
from converters.rules import Rule, revert
from sixbit_jax.errors import UserError
from sixbit_jax.shapes import Params


def verify(
    params: Params, reader: Reader, rules: Sequence[Rule], on_tensor: Callable[[str], None] = lambda key: None
) -> int:
    """How many tensors are, bit for bit, the source's after the cast to our type; raises when one is not."""
    different = []
    for key, ours in revert(params, rules, reader.shapes()):
        if not _same_bits(ours, reader.read(key).astype(ours.dtype)):
            different.append(key)
        on_tensor(key)
    if different:
        raise UserError(f"--verify: {len(different)} tensors differ from the source, the first is {different[0]}")
    return len(rules)


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equality of the bytes, so that NaNs count as equal and zeros of two signs do not."""
    return a.shape == b.shape and np.array_equal(_bits(a), _bits(b))


def _bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8)
