"""ModelOpt's NVFP4 layout: a file typed by hand, round trips, and every other layout that can be told apart."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from converters.modelopt import from_modelopt, read_modelopt, to_modelopt, write_modelopt
from converters.modelopt_checks import swap_nibbles, swizzle, swizzle_evidence
from converters.read import open_files
from converters.safetensors_file import write_file
from sixbit_jax.errors import UserError
from sixbit_jax.formats import dequantize, quantize_nvfp4

N, K = 256, 512


def trained(rng, shape=(N, K), spread=0.2) -> np.ndarray:
    """Gaussian values with rows and columns of different size (a fifth either way), as training leaves them."""
    sizes = np.exp(spread * rng.standard_normal(shape[0]))[:, None] * np.exp(spread * rng.standard_normal(shape[1]))
    return np.float32(rng.standard_normal(shape) * sizes * 0.02)


def parts(rng, shape=(N, K), spread=0.2):
    return to_modelopt(quantize_nvfp4(jnp.asarray(trained(rng, shape, spread))))


def write(path, arrays):
    write_file(path, arrays.items(), {key: (array.dtype, array.shape) for key, array in arrays.items()})


def test_a_tensor_typed_by_hand():
    """Codes 1, 2, … in the order of k: bytes 0x21, 0x43, …; one scale per 16; value = code × scale × scale_2."""
    weight = np.array([[0x21, 0x43, 0x65, 0x07, 0x98, 0xBA, 0xDC, 0xFE]], np.uint8)
    scale = np.array([[2.0]], ml_dtypes.float8_e4m3fn)
    t = from_modelopt({"weight": weight, "weight_scale": scale, "weight_scale_2": np.float32(0.25)})
    expected = [0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    assert (dequantize(t)[0] * 2).tolist() == expected


def test_files_round_trip_bit_for_bit(rng, tmp_path):
    tensors = {f"blocks.{i}.ffn": quantize_nvfp4(jnp.asarray(trained(rng, (48, 64)))) for i in range(3)}
    write_modelopt(tmp_path / "model.safetensors", tensors)
    again = read_modelopt(tmp_path / "model.safetensors")
    assert list(again) == list(tensors)
    for layer, t in tensors.items():
        for part, array in to_modelopt(t).items():
            np.testing.assert_array_equal(to_modelopt(again[layer])[part], array)


def test_keys_and_types_are_modelopts(rng, tmp_path):
    write_modelopt(tmp_path / "model.safetensors", {"ffn": quantize_nvfp4(jnp.asarray(trained(rng, (48, 64))))})
    reader = open_files([tmp_path / "model.safetensors"])
    described = {key: (reader.dtype(key).name, reader.shape(key)) for key in reader.tensors}
    assert described == {
        "ffn.weight": ("uint8", (48, 32)),
        "ffn.weight_scale": ("float8_e4m3fn", (48, 4)),
        "ffn.weight_scale_2": ("float32", ()),
    }


def test_dense_tensors_and_input_scales_are_left_out(rng, tmp_path):
    quantized = {f"ffn.{part}": array for part, array in parts(rng, (48, 64)).items()}
    others = {"norm.weight": np.ones(64, np.float32), "ffn.input_scale": np.float32([1.0])}
    write(tmp_path / "model.safetensors", quantized | others)
    assert list(read_modelopt(tmp_path / "model.safetensors")) == ["ffn"]


def test_stacked_layers_keep_their_scales(rng):
    t = quantize_nvfp4(jnp.asarray(trained(rng, (3, 64))), tensor_scale=1e-4)
    with pytest.raises(UserError, match="one tensor scale per matrix, not one per row"):
        to_modelopt(quantize_nvfp4(dequantize(t), tensor_scale=jnp.ones(3)))


class TestOtherLayouts:
    def refuse(self, parts, message, reference=None):
        with pytest.raises(UserError, match=message) as caught:
            from_modelopt(parts, reference, name="ffn")
        assert "\n" not in str(caught.value) and str(caught.value).startswith("ffn: ")

    def test_padded_scales_are_swizzled(self, rng):
        """Flat bytes as TensorRT-LLM keeps them, or a matrix of the padded shape."""
        ours = parts(rng, (200, 96))
        padded = swizzle(ours["weight_scale"])
        assert padded.shape == (256, 8)
        for scale in (padded, padded.reshape(-1), padded.reshape(-1).view(np.uint8)):
            self.refuse(ours | {"weight_scale": scale}, "padded to tiles of 128 x 4: swizzled")

    def test_flat_bytes_are_swizzled_without_padding_too(self, rng):
        ours = parts(rng)
        flat = swizzle(ours["weight_scale"]).reshape(-1).view(np.uint8)
        self.refuse(ours | {"weight_scale": flat}, "swizzled")

    def test_swizzled_scales_of_the_same_shape(self, rng):
        ours = parts(rng)
        self.refuse(ours | {"weight_scale": swizzle(ours["weight_scale"])}, "looks swizzled")

    def test_many_small_matrices_tell_what_one_cannot(self, rng, tmp_path):
        """Rows and columns differ by 3 % only: too little for any one matrix of this size, not for sixty."""
        layers = {f"blocks.{i}": parts(rng, (128, 256), spread=0.03) for i in range(60)}
        swizzled = {name: layer | {"weight_scale": swizzle(layer["weight_scale"])} for name, layer in layers.items()}
        assert sum(swizzle_evidence(layer["weight_scale"]) > 6 for layer in swizzled.values()) < 30
        for name, file in (("plain", layers), ("swizzled", swizzled)):
            arrays = {f"{key}.{part}": array for key, layer in file.items() for part, array in layer.items()}
            write(tmp_path / f"{name}.safetensors", arrays)
        read_modelopt(tmp_path / "plain.safetensors")
        with pytest.raises(UserError, match=r"swizzled.safetensors: .*looks swizzled"):
            read_modelopt(tmp_path / "swizzled.safetensors")

    @pytest.mark.parametrize("seed", range(5))
    def test_scales_in_order_pass_with_and_without_structure(self, seed):
        rng = np.random.default_rng(seed)
        from_modelopt(parts(rng))
        noise = quantize_nvfp4(jnp.asarray(rng.standard_normal((N, K)), jnp.float32))
        from_modelopt(to_modelopt(noise))
        from_modelopt(to_modelopt(quantize_nvfp4(jnp.ones((128, 64)))))

    def test_swapped_nibbles_show_against_a_reference(self, rng):
        reference = trained(rng)
        ours = to_modelopt(quantize_nvfp4(jnp.asarray(reference)))
        from_modelopt(ours, reference)
        self.refuse(ours | {"weight": swap_nibbles(ours["weight"])}, "nibbles are swapped", reference)

    def test_and_swizzled_scales_of_noise_do(self, rng):
        reference = np.float32(
            rng.standard_normal((N, K)) * 10.0 ** rng.uniform(-2, 0, (N, K // 16)).repeat(16, axis=1)
        )
        ours = to_modelopt(quantize_nvfp4(jnp.asarray(reference)))
        swizzled = ours | {"weight_scale": swizzle(ours["weight_scale"])}
        from_modelopt(swizzled)
        self.refuse(swizzled, "scales are swizzled", reference)

    def test_another_layer_altogether(self, rng):
        self.refuse(parts(rng), r"does not resemble its reference \(-?\d\.\d dB", trained(rng))
        self.refuse(parts(rng), "its reference has shape", trained(rng)[:5])

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"weight": np.zeros((N, K), np.float32)}, r"packed NVFP4 is uint8 \(n, k/2\)"),
            ({"weight": np.zeros((N, 12), np.uint8)}, "rows of 24, not whole blocks of 16"),
            ({"weight_scale": np.ones((N, K // 16), np.float32)}, r"is float32 \(256, 32\); expected float8_e4m3fn"),
            ({"weight_scale": np.ones((N, K // 32), ml_dtypes.float8_e8m0fnu)}, "this is MXFP4"),
            ({"weight_scale": np.ones((K // 16, N), ml_dtypes.float8_e4m3fn)}, r"\(32, 256\)"),
            ({"weight_scale": np.full((N, K // 16), -1, ml_dtypes.float8_e4m3fn)}, "holds -1.0, which is no scale"),
            ({"weight_scale": np.full((N, K // 16), np.nan, ml_dtypes.float8_e4m3fn)}, "holds nan, which is no scale"),
            ({"weight_scale_2": np.float32(0)}, "is 0.0; it must be finite and positive"),
            ({"weight_scale_2": np.ones(N, np.float32)}, "expected one float32 per matrix"),
        ],
    )
    def test_shapes_types_and_values(self, rng, change, message):
        self.refuse(parts(rng) | change, message)


class TestOtherFiles:
    def test_missing_scales_are_named(self, rng, tmp_path):
        arrays = {f"ffn.{part}": array for part, array in parts(rng, (48, 64)).items() if part != "weight_scale"}
        write(tmp_path / "model.safetensors", arrays)
        with pytest.raises(UserError, match=r"model.safetensors: ffn: weight_scale is missing"):
            read_modelopt(tmp_path / "model.safetensors")

    def test_compressed_tensors_is_named(self, rng, tmp_path):
        ours = parts(rng, (48, 64))
        arrays = {"ffn.weight_packed": ours["weight"], "ffn.weight_global_scale": np.float32([100.0])}
        write(tmp_path / "model.safetensors", arrays)
        with pytest.raises(UserError, match="compressed-tensors, whose global scale is the reciprocal"):
            read_modelopt(tmp_path / "model.safetensors")

    def test_dense_files_hold_none(self, tmp_path):
        write(tmp_path / "model.safetensors", {"ffn.weight": np.ones((4, 4), np.float32)})
        with pytest.raises(UserError, match="holds no NVFP4 weights of ModelOpt"):
            read_modelopt(tmp_path / "model.safetensors")
