"""A reader over arrays in memory, for tests."""

from collections.abc import Mapping

import numpy as np

from converters.read import Reader, Tensor


def memory_reader(arrays: Mapping[str, np.ndarray]) -> Reader:
    return Reader((), {key: Tensor(x.shape, x.dtype, lambda x=x: x) for key, x in arrays.items()})
