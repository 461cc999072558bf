"""A conversion is a table: which source tensor fills which part of which of our parameters.

Both directions read the same table, so a round trip is exact by construction. `census` compares a table with a source
and a target tree before any tensor is read; `convert` then streams every source tensor into its slot, and `revert`
walks the same slots the other way.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from sixbit_jax.errors import UserError
from sixbit_jax.shapes import Params, tree_path

# Long lists are cut: a file of the wrong kind has over a thousand unknown keys, and a message is one line.
_LISTED = 4


@dataclasses.dataclass(frozen=True)
class Transform:
    """A reversible change of layout between a source tensor and ours (`inverse(forward(x))` is `x`, bit for bit).

    `inverse` also gets the shape the source tensor had. It is empty when only our own shapes are known (see
    `source_shapes`), so a layout that merges axes must know by itself how to part them again.
    """

    name: str
    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One source tensor.

    source: its key. target: the slash-separated path of our parameter. layer: index on the leading (stacked) axis of
    the target, or None. part: (index, count) when `count` sources are concatenated on the first axis behind `layer`
    (q, k, v of one GEMM). transform: layout change.
    """

    source: str
    target: str
    layer: int | None = None
    part: tuple[int, int] = (0, 1)
    transform: Transform | None = None

    @property
    def slot(self) -> str:
        """The place it fills, as messages write it: `blocks/qkv/weight[3] part 0/3`."""
        layer = "" if self.layer is None else f"[{self.layer}]"
        part = "" if self.part[1] == 1 else f" part {self.part[0]}/{self.part[1]}"
        return f"{self.target}{layer}{part}"


@runtime_checkable
class TensorSource(Protocol):
    """What the engine needs of a reader (see `read.py`)."""

    def keys(self) -> Collection[str]: ...
    def shape(self, key: str) -> tuple[int, ...]: ...
    def dtype(self, key: str) -> np.dtype: ...
    def read(self, key: str) -> np.ndarray: ...


def convert(
    source: TensorSource,
    rules: Sequence[Rule],
    abstract: Params,
    *,
    ignored: Collection[str] = (),
    on_tensor: Callable[[str], None] = lambda key: None,
) -> Params:
    """Our parameters as numpy arrays, in the dtypes of `abstract`; one source tensor is held at a time."""
    if problems := census(source, rules, abstract, ignored):
        raise UserError("; ".join(problems))
    arrays = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in flatten(abstract).items()}
    by_source, order = {rule.source: rule for rule in rules}, source.keys()
    for key in order:  # the source's own, which is that on disk
        if key in by_source:
            _write(arrays, by_source[key], source.read(key))
            on_tensor(key)
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[tree_path(path)], abstract)


def stream(source: TensorSource, rules: Sequence[Rule], abstract: Params) -> Iterator[tuple[str, np.ndarray]]:
    """Like `convert`, one whole parameter of ours after the other; `census` has to have found no problem."""
    for path, leaf in flatten(abstract).items():
        array = {path: np.empty(leaf.shape, leaf.dtype)}
        for rule in rules:
            if rule.target == path:
                _write(array, rule, source.read(rule.source))
        yield path, array[path]


def revert(
    params: Params, rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Every source tensor of the table, cut out of our parameters (`shapes`: the source's, where they are known)."""
    shapes = source_shapes(rules, params) if shapes is None else shapes
    leaves = flatten(params)
    for rule in rules:
        slot = _slot(np.asarray(leaves[rule.target]), rule)
        yield rule.source, rule.transform.inverse(slot, shapes[rule.source]) if rule.transform else slot


def source_shapes(rules: Sequence[Rule], abstract: Params) -> dict[str, tuple[int, ...]]:
    """The shape each source tensor of the table has, from our own shapes alone."""
    leaves = flatten(abstract)
    return {rule.source: _source_shape(rule, leaves[rule.target].shape) for rule in rules}


def census(source: TensorSource, rules: Sequence[Rule], abstract: Params, ignored: Collection[str] = ()) -> list[str]:
    """Everything that keeps `source` from filling `abstract` exactly once, in words; empty when it fits."""
    leaves, keys, slots = flatten(abstract), set(source.keys()), _slots(rules, abstract)
    filled = Counter(_place(rule) for rule in rules if rule.source in keys)
    fitting = [rule for rule in rules if rule.source in keys and _place(rule) in slots]
    lists = {
        "unknown source keys": sorted(keys - {rule.source for rule in rules} - set(ignored)),
        "unfilled targets": [name for place, name in slots.items() if place not in filled],
        "source keys used twice": [key for key, n in Counter(rule.source for rule in rules).items() if n > 1],
        "targets filled twice": [slots[place] for place, n in filled.items() if n > 1 and place in slots],
        "rules without a target": [rule.slot for rule in rules if _place(rule) not in slots],
        "unreadable tensors": [text for rule in fitting if (text := _misfit(source, rule, leaves[rule.target]))],
    }
    return [f"{title}: {_cut(names)}" for title, names in lists.items() if names]


def flatten(tree: Params) -> dict[str, Any]:
    """The leaves of a tree by their slash-separated path."""
    return {tree_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _place(rule: Rule) -> tuple[str, int | None, int]:
    return rule.target, rule.layer, rule.part[0]


def _slots(rules: Sequence[Rule], abstract: Params) -> dict[tuple[str, int | None, int], str]:
    """Every place to fill and its name: the table says how a target is divided, the tree how many layers it has."""
    tables = {_place(rule): f"{rule.slot} (from {rule.source})" for rule in rules}
    patterns = {rule.target: rule for rule in rules}
    slots = {}
    for path, leaf in flatten(abstract).items():
        pattern = patterns.get(path, Rule("", path))
        for layer in (None,) if pattern.layer is None else range(leaf.shape[0]):
            for index in range(pattern.part[1]):
                rule = dataclasses.replace(pattern, layer=layer, part=(index, pattern.part[1]))
                slots[_place(rule)] = tables.get(_place(rule), rule.slot)
    return slots


def _misfit(source: TensorSource, rule: Rule, target: Any) -> str | None:
    found, dtype, expected = source.shape(rule.source), source.dtype(rule.source), _source_shape(rule, target.shape)
    if not jnp.issubdtype(dtype, jnp.floating):
        return f"{rule.source} holds {dtype} values, expected floating point"
    return None if found == expected else f"{rule.source} has shape {found}, expected {expected}"


def _slot(array: np.ndarray, rule: Rule) -> np.ndarray:
    """The view of a target that one rule fills."""
    view = array if rule.layer is None else array[rule.layer]
    index, count = rule.part
    if count == 1:
        return view
    size, rest = divmod(view.shape[0], count)
    if rest:
        raise ValueError(f"{rule.slot}: an axis of {view.shape[0]} does not divide into {count} parts")
    return view[index * size : (index + 1) * size]


def _write(arrays: Mapping[str, np.ndarray], rule: Rule, tensor: np.ndarray) -> None:
    _slot(arrays[rule.target], rule)[...] = rule.transform.forward(tensor) if rule.transform else tensor


def _source_shape(rule: Rule, target: tuple[int, ...]) -> tuple[int, ...]:
    # One element seen through strides of zero: layout changes can be followed without the memory.
    slot = _slot(np.broadcast_to(np.zeros((), np.uint8), target), rule)
    return slot.shape if rule.transform is None else rule.transform.inverse(slot, ()).shape


def _cut(names: Sequence[str]) -> str:
    listed = ", ".join(names[:_LISTED])
    return listed if len(names) <= _LISTED else f"{listed} and {len(names) - _LISTED} more"
