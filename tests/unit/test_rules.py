"""The conversion engine on small made-up tables."""

import tracemalloc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from memory_source import memory_reader

from converters.read import Reader, Tensor
from converters.rules import Rule, Transform, census, convert, flatten, revert, source_shapes
from sixbit_jax.errors import UserError

TRANSPOSE = Transform("transpose", lambda x: x.T, lambda x, _: x.T)
TABLE = [
    Rule("embed", "embed"),
    Rule("out.w", "out/weight", transform=TRANSPOSE),
    *(Rule(f"block.{l}.{n}", "blocks/qkv", l, (i, 3)) for l in range(2) for i, n in enumerate("qkv")),
    *(Rule(f"block.{l}.bias", "blocks/bias", l) for l in range(2)),
]
ABSTRACT = {
    "embed": jax.ShapeDtypeStruct((4, 3), jnp.bfloat16),
    "out": {"weight": jax.ShapeDtypeStruct((5, 3), jnp.float32)},
    "blocks": {"qkv": jax.ShapeDtypeStruct((2, 6, 3), jnp.float32), "bias": jax.ShapeDtypeStruct((2, 3), jnp.float32)},
}


@pytest.fixture
def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = {"embed": (4, 3), "out.w": (3, 5)} | {f"block.{l}.{n}": (2, 3) for l in range(2) for n in "qkv"}
    shapes |= {f"block.{l}.bias": (3,) for l in range(2)}
    return {key: rng.standard_normal(shape, np.float32) for key, shape in shapes.items()}


def test_every_tensor_lands_in_its_slot(arrays):
    params = convert(memory_reader(arrays), TABLE, ABSTRACT)
    assert params["embed"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(params["embed"], arrays["embed"].astype(jnp.bfloat16))
    np.testing.assert_array_equal(params["out"]["weight"], arrays["out.w"].T)
    np.testing.assert_array_equal(params["blocks"]["qkv"][1, 2:4], arrays["block.1.k"])
    np.testing.assert_array_equal(params["blocks"]["bias"][0], arrays["block.0.bias"])


def test_revert_undoes_convert(arrays):
    f32 = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), ABSTRACT)
    back = dict(revert(convert(memory_reader(arrays), TABLE, f32), TABLE))
    assert back.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(back[key], array)


def test_source_shapes_need_no_memory():
    huge = {"w": jax.ShapeDtypeStruct((3, 10**6, 10**6), jnp.float32)}
    table = [Rule(f"{l}", "w", l, transform=TRANSPOSE) for l in range(3)]
    assert source_shapes(table, huge) == {str(l): (10**6, 10**6) for l in range(3)}


def test_unknown_and_missing_keys_are_listed_together(arrays):
    arrays["block.0.z"] = arrays.pop("block.0.q")
    with pytest.raises(UserError, match=r"unknown source keys: block\.0\.z; unfilled targets: .*block\.0\.q"):
        convert(memory_reader(arrays), TABLE, ABSTRACT)


def test_ignored_keys_may_be_present(arrays):
    reader = memory_reader(arrays | {"tied": arrays["embed"]})
    assert census(reader, TABLE, ABSTRACT) == ["unknown source keys: tied"]
    assert census(reader, TABLE, ABSTRACT, ignored=("tied",)) == []


def test_wrong_shape_names_key_found_and_expected(arrays):
    arrays["out.w"] = arrays["out.w"].T
    (problem,) = census(memory_reader(arrays), TABLE, ABSTRACT)
    assert problem == "unreadable tensors: out.w has shape (5, 3), expected (3, 5)"


def test_integers_are_refused(arrays):
    arrays["embed"] = arrays["embed"].astype(np.int8)
    (problem,) = census(memory_reader(arrays), TABLE, ABSTRACT)
    assert "embed holds int8 values" in problem


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        (Rule("embed", "out/weight"), "source keys used twice: embed"),
        (Rule("block.0.q", "embed"), "targets filled twice: embed"),
        (Rule("embed", "nowhere"), "rules without a target: nowhere"),
        (Rule("embed", "blocks/bias", 2), "rules without a target: blocks/bias[2]"),
    ],
)
def test_faults_of_a_table_are_named(arrays, extra, problem):
    assert any(text.startswith(problem) for text in census(memory_reader(arrays), [*TABLE, extra], ABSTRACT))


def test_a_target_without_rule_is_unfilled(arrays):
    more = ABSTRACT | {"head": jax.ShapeDtypeStruct((2,), jnp.float32)}
    assert census(memory_reader(arrays), TABLE, more) == ["unfilled targets: head"]


def test_a_layer_the_table_lacks_is_unfilled(arrays):
    deeper = ABSTRACT | {"blocks": ABSTRACT["blocks"] | {"bias": jax.ShapeDtypeStruct((3, 3), jnp.float32)}}
    assert census(memory_reader(arrays), TABLE, deeper) == ["unfilled targets: blocks/bias[2]"]


def test_long_lists_are_cut(arrays):
    reader = memory_reader(arrays | {f"x{i}": arrays["embed"] for i in range(9)})
    assert census(reader, TABLE, ABSTRACT) == ["unknown source keys: x0, x1, x2, x3 and 5 more"]


def test_parts_must_divide_the_axis():
    table = [Rule(n, "w", part=(i, 2)) for i, n in enumerate("ab")]
    with pytest.raises(ValueError, match="7 does not divide into 2 parts"):
        source_shapes(table, {"w": jax.ShapeDtypeStruct((7,), jnp.float32)})


def test_flatten_names_leaves_by_path():
    assert list(flatten(ABSTRACT)) == ["blocks/bias", "blocks/qkv", "embed", "out/weight"]


def _counting_reader(shape: tuple[int, ...], count: int) -> tuple[Reader, list[int]]:
    """A reader that makes each tensor when asked and records how many are alive then."""
    alive: list[weakref.ref] = []
    seen: list[int] = []

    def load() -> np.ndarray:
        seen.append(sum(ref() is not None for ref in alive))
        tensor = np.ones(shape, np.float32)
        alive.append(weakref.ref(tensor))
        return tensor

    return Reader((), {str(i): Tensor(shape, np.dtype(np.float32), load) for i in range(count)}), seen


def test_peak_memory_is_the_model_and_one_tensor():
    shape, count = (256, 256), 16
    reader, alive_before = _counting_reader(shape, count)
    abstract = {"w": jax.ShapeDtypeStruct((count, *shape), jnp.bfloat16)}
    table = [Rule(str(i), "w", i) for i in range(count)]
    tracemalloc.start()
    convert(reader, table, abstract)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    model, tensor = count * 256 * 256 * 2, 256 * 256 * 4
    assert max(alive_before) == 0
    # Slack: the objects of the engine itself, and numpy's casting buffer (8192 elements).
    assert model + tensor <= peak < model + tensor + 100_000
