"""The decoding that a GPU would run, instruction by instruction, next to its emulation in JAX."""

import jax.numpy as jnp
import numpy as np
import ptx_integers
import pytest

from pallas_kernels import ptx
from pallas_kernels.nvfp4_matmul import decode_sm90
from pallas_kernels.nvfp4_matmul.emulation import decoded, pair_bits, scale_bits


@pytest.fixture(autouse=True)
def integers(monkeypatch):
    monkeypatch.setattr(ptx, "op", ptx_integers.op)
    monkeypatch.setattr(ptx, "shared_address", lambda address: address)


def test_pairs_are_those_of_the_emulation(rng):
    words = rng.integers(0, 2**32, 200, dtype=np.uint32)
    expected = [np.asarray(pair_bits(jnp.asarray(words.view(np.int32)), i)).view(np.uint32) for i in range(4)]
    actual = [decode_sm90.pairs(int(word)) for word in words]
    np.testing.assert_array_equal(np.array(actual, np.uint32).T, np.array(expected))


@pytest.mark.parametrize("span", [1, 2, 4])
def test_threads_hold_the_operand_of_the_emulation(monkeypatch, rng, span):
    """Addresses in swizzled memory, codes, scales and their places in registers, for some threads of each warp."""
    packed = rng.integers(0, 256, (64, 128 * span), dtype=np.uint8)
    scales = jnp.asarray(2.0 ** rng.uniform(-6, 8.7, (64, 16 * span)), jnp.float8_e4m3fn)
    expected = np.asarray(decoded(jnp.asarray(packed), scales)).reshape(64, span, 32, 4, 2)
    memory = ptx_integers.Memory([_swizzled(packed.view(np.uint32)), np.asarray(scales).view(np.uint8)])
    monkeypatch.setattr(ptx, "load_words", memory.load_words)
    for row, lane in [(0, 0), (7, 3), (5, 2), (17, 1), (35, 3), (54, 0)]:
        monkeypatch.setattr(ptx, "thread_row", lambda row=row: row)
        monkeypatch.setattr(ptx, "thread_column", lambda lane=lane: lane)
        for chunk in range(span):
            found = decode_sm90.thread_codes(0, int(memory.starts[1]), chunk, span)
            assert len(found) == 64
            for (columns, half), operands in found.items():
                values = [_bf16(bits) for bits in operands]
                np.testing.assert_array_equal(
                    values[0] * values[1], expected[row + 8 * half, chunk, columns, lane], str((row, lane))
                )


def test_scales_are_those_of_the_emulation():
    scales = np.arange(8, 0x7F, dtype=np.uint8)[:116].reshape(-1, 4)
    actual = [decode_sm90._scales(int(word)) for word in scales.view(np.uint32)[:, 0]]
    expected = np.asarray(scale_bits(jnp.asarray(scales.view(np.int8)))) * 0x10001
    np.testing.assert_array_equal(np.array(actual), expected)


def _swizzled(words):
    """Tiles of eight rows by 128 bytes, sixteen bytes at place ^ row, as TMA fills them."""
    rows, columns = words.shape
    tiles = words.reshape(rows // 8, 8, columns // 32, 8, 4).transpose(0, 2, 1, 3, 4)
    places = np.arange(8) ^ np.arange(8)[:, None]
    return np.take_along_axis(tiles, places[None, None, :, :, None], axis=3).copy()


def _bf16(pair):
    """The halves of a register, lower first, as f64."""
    return np.array([pair << 16 & 0xFFFFFFFF, pair & 0xFFFF0000], np.uint32).view(np.float32).astype(np.float64)
