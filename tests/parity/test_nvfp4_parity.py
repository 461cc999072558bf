"""`quantize_nvfp4` against torchao's NVFP4 with a per-tensor scale: codes and both scales, bit for bit.

And back: torchao dequantizes our files, opened by the safetensors library, to the values that we do.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, nvfp4_quantize, per_tensor_amax_to_scale

from converters.modelopt import write_modelopt
from sixbit_jax.formats import dequantize, quantize_nvfp4

pytestmark = pytest.mark.parity

SCALES = [10.0**exponent for exponent in range(-6, 5)]
SHAPE = (64, 512)


def gaussian(rng, scale):
    return np.float32(rng.standard_normal(SHAPE) * scale)


def one_huge_value_per_block(rng, scale):
    x = gaussian(rng, scale)
    x[:, ::16] *= 1e4
    return x


def zeros_of_both_signs(rng, scale):
    x = gaussian(rng, scale)
    x[rng.random(SHAPE) < 0.3] = 0
    x[rng.random(SHAPE) < 0.1] = -0.0
    x[3], x[5, :32] = 0, -0.0
    return x


def all_sizes(rng, scale):
    return np.float32(gaussian(rng, scale) * 10.0 ** rng.uniform(-6, 4, SHAPE))


def subnormals(rng, scale):
    x = gaussian(rng, scale)
    bits = rng.integers(1, 2**23, (8, SHAPE[1]), dtype=np.uint32) | (rng.integers(0, 2, (8, SHAPE[1])) << 31).astype(
        np.uint32
    )
    x[:8] = bits.view(np.float32)
    return x


def ties(rng, scale):
    """Halfway between two codes, under block scales that are powers of two."""
    grid = np.float32([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 0, 0.5, 1, 1.5, 2, 3, 4, 6, 6])
    x = rng.permuted(np.tile(grid, (*SHAPE[:1], SHAPE[1] // 16)).reshape(-1, 16), axis=1).reshape(SHAPE)
    x = x * rng.choice([-1, 1], SHAPE) * 2.0 ** rng.integers(-3, 4, (SHAPE[0], 1))
    # The tensor scale becomes a power of two as well.
    x[0, 0] = 448 * 6
    return np.float32(x)


def largest_floats(rng, scale):
    x = gaussian(rng, scale)
    x[0, 0], x[5, 7] = np.finfo(np.float32).max, -np.finfo(np.float32).max
    return x


KINDS = [gaussian, one_huge_value_per_block, zeros_of_both_signs, all_sizes, subnormals, ties, largest_floats]


def assert_same_bits(x: torch.Tensor, ours):
    tensor_scale = per_tensor_amax_to_scale(x.abs().max())
    block_scale, packed = nvfp4_quantize(x, 16, tensor_scale)
    assert np.asarray(ours.tensor_scale) == tensor_scale.numpy()
    np.testing.assert_array_equal(np.asarray(ours.block_scale).view(np.uint8), block_scale.view(torch.uint8).numpy())
    np.testing.assert_array_equal(ours.packed, packed.numpy())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", SCALES)
def test_equals_torchao(rng, kind, scale):
    x = kind(rng, scale)
    assert_same_bits(torch.from_numpy(x), quantize_nvfp4(jnp.asarray(x)))


@pytest.mark.parametrize("scale", SCALES)
def test_bf16_equals_torchao(rng, scale):
    x = torch.from_numpy(gaussian(rng, scale)).bfloat16()
    assert_same_bits(x, quantize_nvfp4(jnp.asarray(x.float().numpy(), jnp.bfloat16)))


def test_inside_a_larger_program(rng):
    """XLA may not fold our divisions into what is around them, nor turn them into products."""
    x = one_huge_value_per_block(rng, 0.02)
    program = jax.jit(lambda x: jax.vmap(quantize_nvfp4, axis_size=2)(jnp.stack([x, x * 2])))
    both = program(jnp.asarray(x))
    for index, factor in enumerate((1, 2)):
        assert_same_bits(torch.from_numpy(x * factor), jax.tree.map(lambda leaf, i=index: leaf[i], both))


def test_others_read_our_files(rng, tmp_path):
    t = quantize_nvfp4(jnp.asarray(gaussian(rng, 0.02)))
    write_modelopt(tmp_path / "model.safetensors", {"ffn": t})
    parts = load_file(tmp_path / "model.safetensors")
    weight, scale, scale_2 = (parts[f"ffn.{part}"] for part in ("weight", "weight_scale", "weight_scale_2"))
    theirs = NVFP4Tensor(weight, scale, 16, torch.float32, per_tensor_scale=scale_2).dequantize()
    # They multiply the two scales first: one rounding more.
    np.testing.assert_allclose(theirs.numpy(), dequantize(t), rtol=2**-22, atol=0)
