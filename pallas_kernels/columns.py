"""Heads that lie side by side in one array, as a projection of several things at once leaves them."""

import dataclasses
from typing import Any

import jax
from jax import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Columns:
    """An array (b, s, a, c) that is not cut out: `heads` heads in columns of `merged` (b, s, w), from `first` on.

    A kernel that reads them where they lie saves a copy of them, which a slice would be in front of it.
    """

    merged: Array
    first: int = dataclasses.field(metadata={"static": True})
    heads: int = dataclasses.field(metadata={"static": True})
    head_dim: int = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return *self.merged.shape[:-1], self.heads, self.head_dim

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        return self.merged.dtype

    def cut_out(self) -> Array:
        last = self.first + self.heads * self.head_dim
        return self.merged[..., self.first : last].reshape(self.shape)


def side_by_side(merged: Array, parts: int, heads: int) -> tuple[Columns, ...]:
    """The equal parts of the columns of `merged`, of `heads` heads each.

    >>> import jax.numpy as jnp
    >>> q, k, v = side_by_side(jnp.arange(24.0).reshape(1, 2, 12), parts=3, heads=2)
    >>> q.shape, v.first, v.cut_out()[0, 1, 1].tolist()
    ((1, 2, 2, 2), 8, [22.0, 23.0])
    """
    width = merged.shape[-1] // parts
    if width * parts != merged.shape[-1] or width % heads:
        raise ValueError(f"{merged.shape[-1]} columns are not {parts} parts of {heads} heads each")
    return tuple(Columns(merged, part * width, heads, width // heads) for part in range(parts))


def as_array(x: Array | Columns) -> Array:
    return x.cut_out() if isinstance(x, Columns) else x


def as_columns(x: Array | Columns) -> Columns:
    """An array is all columns of itself."""
    if isinstance(x, Columns):
        return x
    return Columns(x.reshape(*x.shape[:-2], -1), 0, *x.shape[-2:])
