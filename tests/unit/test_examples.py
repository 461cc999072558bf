"""Every public function shows how it is called; pytest runs the examples (`--doctest-modules`)."""

import importlib
import inspect

import pytest

PUBLIC = (
    "sixbit_jax",
    *(f"sixbit_jax.{name}" for name in ("attention", "formats", "linear", "policies", "quantizers", "recipes")),
    "sixbit_jax.schedulers",
)
FILES = ("converters.modelopt", "converters.quantized_file")


def functions(name: str) -> dict[str, object]:
    """What a module exports, or, of one without `__all__`, what it defines without an underscore."""
    module = importlib.import_module(name)
    local = (key for key, value in vars(module).items() if getattr(value, "__module__", None) == name)
    exported = getattr(module, "__all__", [key for key in local if not key.startswith("_")])
    values = {key: getattr(module, key) for key in exported}
    return {key: value for key, value in values.items() if inspect.isfunction(inspect.unwrap(value))}


@pytest.mark.parametrize("name", [*PUBLIC, *FILES])
def test_every_public_function_has_an_example(name):
    found = functions(name)
    assert found or name == "sixbit_jax.policies"
    # One function of a pair may show both: the doc of the other points at "its example".
    without = [key for key, value in found.items() if not any(word in value.__doc__ for word in (">>>", "its example"))]
    assert without == []
