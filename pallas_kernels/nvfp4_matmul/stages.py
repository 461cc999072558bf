"""What the kernels for few tokens do with the stages of shared memory that the weight comes through."""

from collections.abc import Sequence
from typing import Any

from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu


def slot_to_fill(i: Array, stages: int, ahead: int, scratch: dict[str, Any]) -> Array:
    """Of stage i: once it is empty, and at most `ahead` are under way; what comes first would come later."""
    slot = lax.rem(i, stages)

    @pl.when(i >= stages)
    def _wait_until_empty():
        plgpu.barrier_wait(scratch["empty"].at[slot])

    if ahead < stages:

        @pl.when(i >= ahead)
        def _wait_for_an_earlier_one():
            plgpu.barrier_wait(scratch["full"].at[lax.rem(i - ahead, stages)])

    return slot


def prefetch(weights_gmem: Sequence[Any], sizes: Sequence[int], rows: Any, first: Any, count: int) -> None:
    """Stages to the second-level cache. Should the kernel before still write them, that is no harm."""
    for i in range(count):
        for gmem, size in zip(weights_gmem, sizes, strict=True):
            plgpu.async_prefetch(gmem.at[rows, pl.ds((first + i) * size, size)])
