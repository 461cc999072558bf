"""Readers: safetensors files whole and damaged, folders of shards, what the community adds."""

import errno
import json
import struct
import sys

import ml_dtypes
import numpy as np
import pytest
from memory_source import memory_reader

from converters import safetensors_file
from converters.community import normalize
from converters.read import open_file, open_files, read_json, weight_files
from converters.safetensors_file import write_file
from sixbit_jax.errors import UserError


def save(path, arrays):
    write_file(path, arrays.items(), {key: (x.dtype, x.shape) for key, x in arrays.items()})
    return path


@pytest.fixture
def arrays(rng):
    values = rng.standard_normal((3, 4), np.float32)
    return {
        "f32": values,
        "bf16": values.astype(ml_dtypes.bfloat16),
        "f8": values.astype(ml_dtypes.float8_e4m3fn),
        "scalar": np.float32(2).reshape(()),
        "empty": np.zeros((0, 4), np.float16),
        "bool": np.array([True, False]),
    }


def test_what_is_written_is_read(tmp_path, arrays):
    reader = open_files([save(tmp_path / "a.safetensors", arrays)])
    assert set(reader.keys()) == set(arrays)
    for key, array in arrays.items():
        assert (reader.shape(key), reader.dtype(key)) == (array.shape, array.dtype)
        found = reader.read(key)
        assert found.dtype == array.dtype
        assert found.tobytes() == array.tobytes()


def test_tensors_are_mapped_not_loaded(tmp_path, arrays):
    reader = open_files([save(tmp_path / "a.safetensors", arrays)])
    found = reader.read("f32")
    assert isinstance(found, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0


def test_keys_come_in_the_order_on_disk(tmp_path):
    arrays = {"z": np.zeros(2, np.float32), "a": np.ones(3, np.float32)}
    assert list(open_file(save(tmp_path / "a.safetensors", arrays))) == ["z", "a"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-8], "truncated: its tensors need"),
        (lambda data: data[:40], "truncated: its header needs"),
        (lambda data: data[:5], "not a safetensors file"),
        (lambda data: b"", "not a safetensors file"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "not a safetensors file"),
        (lambda data: data[:8] + b"[" + data[9:], "header is not JSON"),
        (lambda data: data.replace(b'"F16"', b'"F4" '), "type F4, which is not supported"),
        (lambda data: data.replace(b"[3,4]", b"[4,4]"), "header entry .* is damaged"),
    ],
)
def test_damaged_files_are_named_in_one_line(tmp_path, arrays, damage, message):
    path = save(tmp_path / "a.safetensors", arrays)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        open_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_header_without_offsets_is_damaged(tmp_path):
    header = json.dumps({"x": {"dtype": "F32", "shape": [1]}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UserError, match='header entry of "x" is damaged'):
        open_file(path)


def test_a_description_that_lies_is_a_bug(tmp_path):
    with pytest.raises(ValueError, match="x: described as"):
        write_file(tmp_path / "a.safetensors", [("x", np.ones(2))], {"x": (np.dtype(np.float32), (2,))})


@pytest.mark.parametrize(("name", "message"), [("a.gguf", "not a kind of file"), ("a.safetensors", "no such file")])
def test_unreadable_paths(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        open_file(tmp_path / name)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def deny(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    path = save(tmp_path / "a.safetensors", {"x": np.zeros(1, np.float32)})
    monkeypatch.setattr(safetensors_file, "read_header", deny)
    with pytest.raises(UserError, match=r"a\.safetensors: Permission denied"):
        open_file(path)


def test_torch_files_say_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pth").touch()
    with pytest.raises(UserError, match=r'pip install "sixbit-jax\[torch\]"'):
        open_file(tmp_path / "a.pth")


def test_shards_with_and_without_index(tmp_path, arrays):
    save(tmp_path / "m-1.safetensors", {"f32": arrays["f32"]})
    save(tmp_path / "m-2.safetensors", {"bf16": arrays["bf16"]})
    save(tmp_path / "stray.safetensors", {"f8": arrays["f8"]})
    assert list(open_files(weight_files(tmp_path)).keys()) == ["f32", "bf16", "f8"]
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"f32": "m-1.safetensors", "bf16": "m-2.safetensors"}}))
    assert list(open_files(weight_files(tmp_path)).keys()) == ["f32", "bf16"]
    (tmp_path / "m-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"m-2\.safetensors: missing, although"):
        weight_files(tmp_path)
    index.write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        weight_files(tmp_path)


def test_a_key_in_two_files_is_refused(tmp_path, arrays):
    paths = [save(tmp_path / f"{n}.safetensors", {"f32": arrays["f32"]}) for n in "ab"]
    with pytest.raises(UserError, match='"f32" is also in another file'):
        open_files(paths)


def test_two_indexes_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="has 2 indexes"):
        weight_files(tmp_path)


@pytest.mark.parametrize(("text", "message"), [(None, "missing"), ("{", "damaged"), ("[]", "damaged")])
def test_json_that_is_none(tmp_path, text, message):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_json(path)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "model.", ""])
def test_prefixes_go_when_all_keys_carry_them(prefix):
    arrays = {f"{prefix}{key}": np.zeros(1, np.float32) for key in ("a", "b.c")}
    assert list(normalize(memory_reader(arrays)).keys()) == ["a", "b.c"]


def test_prefixes_of_part_of_the_keys_stay():
    arrays = {key: np.zeros(1, np.float32) for key in ("model.diffusion_model.a", "vae.b")}
    assert list(normalize(memory_reader(arrays)).keys()) == list(arrays)


def test_scaled_fp8_becomes_the_product(rng):
    codes = rng.standard_normal((4, 4), np.float32).astype(ml_dtypes.float8_e4m3fn)
    scale = np.float32(0.037)
    arrays = {
        "scaled_fp8": np.zeros(2, ml_dtypes.float8_e4m3fn),
        "model.diffusion_model.x.weight": codes,
        "model.diffusion_model.x.scale_weight": scale.reshape(1),
        "model.diffusion_model.x.scale_input": scale.reshape(1),
        "model.diffusion_model.x.bias": np.ones(4, np.float32),
    }
    reader = normalize(memory_reader(arrays))
    assert set(reader.keys()) == {"x.weight", "x.bias"}
    assert reader.dtype("x.weight") == np.float32
    np.testing.assert_array_equal(reader.read("x.weight"), codes.astype(np.float32) * scale)


def test_scales_per_row_are_refused():
    arrays = {"x.weight": np.ones((2, 2), np.float32), "x.scale_weight": np.ones((2, 1), np.float32)}
    with pytest.raises(UserError, match="only one scale per tensor"):
        normalize(memory_reader(arrays))


@pytest.mark.parametrize(
    "key",
    [
        "diffusion_model.blocks.0.ffn.0.lora_A.weight",
        "lora_unet_blocks_0_ffn_0.lora_down.weight",
        "blocks.0.norm3.diff_b",
        "blocks.0.ffn.0.alpha",
    ],
)
def test_loras_are_refused(tmp_path, key):
    path = save(tmp_path / "lora.safetensors", {key: np.ones((2, 2), np.float32)})
    with pytest.raises(UserError, match="a LoRA"):
        normalize(open_files([path]))
