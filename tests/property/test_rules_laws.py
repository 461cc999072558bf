"""Laws of the conversion engine, for any table: both directions undo each other, bit for bit."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_source import memory_reader

from converters.rules import Rule, Transform, census, convert, revert, source_shapes

_AXES = st.permutations(range(3))


@st.composite
def _transforms(draw):
    """None, a permutation of three axes, or a merge of the last two axes into one."""
    kind = draw(st.sampled_from(["none", "permute", "merge"]))
    if kind == "none":
        return None
    if kind == "permute":
        axes = draw(_AXES)
        return Transform("permute", lambda x: x.transpose(axes), lambda x, _: x.transpose(np.argsort(axes)))
    last = draw(st.integers(1, 3))
    return Transform("merge", lambda x: x.reshape(len(x), -1), lambda x, _: x.reshape(len(x), -1, last))


@st.composite
def _targets(draw, name: str):
    """The rules of one target, the abstract leaf, and the source shape."""
    transform = draw(_transforms())
    count, layers = draw(st.integers(1, 3)), draw(st.sampled_from([None, 1, 2, 3]))
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=3, max_size=3)))
    if transform and transform.name == "merge":
        shape = (*shape[:2], transform.inverse(np.zeros((1, 6)), ()).shape[-1])
    ours = transform.forward(np.zeros(shape)).shape if transform else shape
    leaf = ((layers,) if layers else ()) + (ours[0] * count, *ours[1:])
    rules = [
        Rule(f"{name}.{layer}.{part}", name, layer, (part, count), transform)
        for layer in (range(layers) if layers else [None])
        for part in range(count)
    ]
    return rules, jax.ShapeDtypeStruct(leaf, np.float32), shape


@st.composite
def _tables(draw):
    rules, abstract, shapes = [], {}, {}
    for index in range(draw(st.integers(1, 4))):
        name = f"group/{index}" if draw(st.booleans()) else f"{index}"
        made, leaf, shape = draw(_targets(name))
        rules += made
        shapes |= {rule.source: shape for rule in made}
        node, key = (abstract.setdefault("group", {}), str(index)) if "/" in name else (abstract, name)
        node[key] = leaf
    return draw(st.permutations(rules)), abstract, shapes


@settings(deadline=None)
@given(_tables(), st.integers(0, 2**32 - 1))
def test_round_trip_is_exact(table, seed):
    rules, abstract, shapes = table
    rng = np.random.default_rng(seed)
    # Any bits, NaNs and signed zeros included.
    arrays = {key: rng.integers(0, 2**32, shape, np.uint32).view(np.float32) for key, shape in shapes.items()}
    back = dict(revert(convert(memory_reader(arrays), rules, abstract), rules))
    assert {key: x.tobytes() for key, x in back.items()} == {key: x.tobytes() for key, x in arrays.items()}


@settings(deadline=None)
@given(_tables())
def test_source_shapes_follow_from_ours(table):
    rules, abstract, shapes = table
    assert source_shapes(rules, abstract) == shapes


@settings(deadline=None)
@given(_tables(), st.data())
def test_a_missing_key_is_always_noticed(table, data):
    rules, abstract, shapes = table
    lost = data.draw(st.sampled_from(sorted(shapes)))
    arrays = {key: np.zeros(shape, np.float32) for key, shape in shapes.items() if key != lost}
    (problem,) = census(memory_reader(arrays), rules, abstract)
    assert problem.startswith("unfilled targets")
    assert f"(from {lost})" in problem
