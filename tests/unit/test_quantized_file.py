"""Our own safetensors layout: every format and method round-trips, keys are those documented, damage is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters.quantized_file import read_quantized, write_quantized
from converters.read import open_files
from converters.safetensors_file import write_file
from sixbit_jax.errors import UserError
from sixbit_jax.formats import quantize_int8, quantize_nvfp4
from sixbit_jax.quantizers import ARQ, BGR, MinMax, SmoothQuant, SVDQuant, observe


def everything(rng):
    w = jnp.asarray(rng.standard_normal((8, 128)), jnp.float32)
    statistics = observe(jnp.asarray(rng.standard_normal((16, 128)), jnp.float32))
    return {
        "nvfp4": quantize_nvfp4(w),
        "int8": quantize_int8(w),
        "grouped": quantize_int8(w, group=32),
        "int4": MinMax("int4")(w).weight,
        "blocks/minmax": MinMax()(jnp.stack([w, w])),
        "blocks/smooth": SmoothQuant(weights=SVDQuant(rank=4))(w, statistics),
        "blocks/dvd": ARQ(weights=BGR(4, 1))(w),
        "norm": jnp.ones(5, jnp.bfloat16),
        # A name that begins with another.
        "nvfp4.more": quantize_nvfp4(w * 2),
    }


def test_everything_round_trips_bit_for_bit(rng, tmp_path):
    tensors = everything(rng)
    write_quantized(tmp_path / "q.safetensors", tensors)
    again = read_quantized(tmp_path / "q.safetensors")
    assert again.keys() == tensors.keys()
    for name, value in tensors.items():
        assert jax.tree.structure(again[name]) == jax.tree.structure(value)
        for ours, theirs in zip(jax.tree.leaves(value), jax.tree.leaves(again[name]), strict=True):
            assert ours.dtype == theirs.dtype
            assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes() and ours.shape == theirs.shape


def test_keys_are_those_documented(rng, tmp_path):
    write_quantized(tmp_path / "q.safetensors", everything(rng))
    keys = set(open_files([tmp_path / "q.safetensors"]).keys())
    assert {"nvfp4.packed", "nvfp4.block_scale", "nvfp4.tensor_scale", "int8.data", "int8.scale", "norm"} <= keys
    assert {key for key in keys if key.startswith("blocks/smooth")} == {
        f"blocks/smooth.{part}"
        for part in ("weight.packed", "weight.block_scale", "weight.tensor_scale", "smooth", "down", "up")
    }
    assert {key for key in keys if key.startswith("blocks/dvd")} == {
        f"blocks/dvd.{part}" for part in ("weight.packed", "weight.scale", "zero")
    }


def test_files_of_others_are_refused(tmp_path):
    path = tmp_path / "q.safetensors"
    write_file(path, [("a", np.ones(2, np.float32))], {"a": (np.dtype(np.float32), (2,))})
    with pytest.raises(UserError, match='no "quantized" entry; it was written by another program'):
        read_quantized(path)


@pytest.mark.parametrize(
    "kind, message",
    [('{"a": {"type": "NVFP4Tensor"}}', '"a.packed" is missing'), ('{"a": {"type": "Int3Tensor"}}', "is a Int3Tensor")],
)
def test_damage_is_named(tmp_path, kind, message):
    path = tmp_path / "q.safetensors"
    array = np.ones(2, np.float32)
    write_file(path, [("a.scale", array)], {"a.scale": (array.dtype, array.shape)}, {"quantized": kind})
    with pytest.raises(UserError, match=message):
        read_quantized(path)


def test_parts_that_do_not_belong_together_are_named(tmp_path):
    """A file that another program edited: the codes of an INT8 tensor are there, as unsigned bytes."""
    path = tmp_path / "q.safetensors"
    arrays = {"a.data": np.ones((2, 4), np.uint8), "a.scale": np.ones((2, 1), np.float32)}
    described = {key: (array.dtype, array.shape) for key, array in arrays.items()}
    write_file(path, arrays.items(), described, {"quantized": '{"a": {"type": "Int8Tensor"}}'})
    with pytest.raises(UserError, match=r"q\.safetensors: a\.data is uint8; it must be int8"):
        read_quantized(path)


def test_a_tensor_without_arrays_and_half_a_branch_are_named(tmp_path):
    path = tmp_path / "q.safetensors"
    array = np.ones(2, np.float32)
    kind = '{"a": {"type": "Int8Tensor"}}'
    write_file(path, [("b", array)], {"b": (array.dtype, array.shape)}, {"quantized": kind})
    with pytest.raises(UserError, match=r'q\.safetensors: "a\.data" is missing'):
        read_quantized(path)
    arrays = {"a.weight.data": np.ones((2, 4), np.int8), "a.weight.scale": np.ones((2, 1), np.float32)}
    arrays["a.down"] = np.ones((1, 4), np.float32)
    described = {key: (each.dtype, each.shape) for key, each in arrays.items()}
    kind = '{"a": {"type": "QuantizedWeight", "weight": "Int8Tensor", "rotated": null, "act_group": null}}'
    write_file(path, arrays.items(), described, {"quantized": kind})
    with pytest.raises(UserError, match=r'q\.safetensors: "a\.up" is missing'):
        read_quantized(path)
