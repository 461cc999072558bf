"""A warp's instructions on arrays, one entry a lane, in place of PTX, and device memory for them."""

import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import ptx_integers
import pytest

from pallas_kernels import integers, ptx
from pallas_kernels.quantize_rows import registers

LANES = 32


def replace_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers of a warp's 32 lanes are arrays from here on."""
    number = lambda x: np.asarray(x, np.float64)
    monkeypatch.setattr(ptx, "op", ptx_integers.op)
    monkeypatch.setattr(integers, "arith", ptx_integers.ARITH)
    monkeypatch.setitem(ptx_integers.INSTRUCTIONS, "selp.b32", lambda a, b, here: np.where(here, a, b))
    monkeypatch.setattr(ptx, "constant", lambda x, kind: x)
    monkeypatch.setattr(ptx, "address", lambda address: address)
    monkeypatch.setattr(ptx, "add", lambda x, y, kind="f": x + y)
    monkeypatch.setattr(ptx, "subtract", lambda x, y: _as_float(x) - np.float32(y))
    # In float64 the product is exact.
    monkeypatch.setattr(ptx, "fma", lambda x, y, z: (number(x) * number(y) + number(z)).astype(np.float32))
    monkeypatch.setattr(ptx, "to_bf16", lambda pair: np.stack(pair, 1).astype(jnp.bfloat16).view(np.uint32)[:, 0])
    monkeypatch.setattr(registers, "as_floats", lambda word: (_bits(word << 16), _bits(word & 0xFFFF0000)))
    monkeypatch.setattr(ptx, "emit", _shuffle)


def _bits(x: np.ndarray) -> np.ndarray:
    return x.astype(np.uint32).view(np.float32)


def _as_float(x: Any) -> np.ndarray:
    """A register knows no kind: what integer instructions made is an f32 by its bits."""
    x = np.asarray(x)
    return x if x.dtype.kind == "f" else _bits(x)


def _shuffle(text: str, out: str, ins: Any, volatile: bool) -> list[np.ndarray]:
    found = re.match(r"shfl\.sync\.(idx|bfly)\.b32 \{o\[0\]\}, \{i\[0\]\}, (\S+), 31, 0xffffffff;", text)
    assert found, text
    x = ins[0][1]
    lane = ins[1][1] % LANES if found[1] == "idx" else np.arange(LANES) ^ int(found[2])
    return [np.broadcast_to(x[lane], x.shape)]


class DeviceMemory:
    """Arrays at addresses far apart, and what lanes read and write there."""

    def __init__(self, *arrays: Any) -> None:
        self.arrays = [np.array(array) for array in arrays]
        self.starts = [(i + 1) << 40 for i in range(len(arrays))]
        self.writes = [np.zeros(array.nbytes // 4, np.int64) for array in self.arrays]  # how often each word
        self.constant: set[int] = set()  # arrays that were read as what nobody writes

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ptx, "load_global", self.load_global)
        monkeypatch.setattr(ptx, "store_global", self.store_global)
        monkeypatch.setattr(ptx, "load_sixteen", self.load_sixteen)
        monkeypatch.setattr(registers, "store", self.store)

    def load_global(self, ref: Any, offset: Any, kind: str = "f") -> np.ndarray:
        (word,) = self._read(ref + 4 * offset, 1, None)
        return word.view(np.float32) if kind == "f" else word.view(np.int32).astype(np.int64)

    def load_sixteen(self, instruction: str, address: tuple[str, Any], offset: int, exists: Any) -> list[np.ndarray]:
        if ".nc" in instruction:
            self.constant.add(self._which(address[1]))
        return [word.astype(np.int64) for word in self._read(address[1] + offset, 4, exists)]

    def store(self, address: Any, offset: int, words: list[np.ndarray], exists: Any) -> None:
        array, place = self._find(address + offset, exists)
        here = _lanes(exists)
        for i, word in enumerate(words):
            self._words(array)[place[here] // 4 + i] = np.broadcast_to(word, LANES)[here]
            np.add.at(self.writes[array], place[here] // 4 + i, 1)

    def store_global(self, ref: Any, offset: Any, x: np.ndarray, here: Any, kind: str = "f") -> None:
        self.store(ref + 4 * offset, 0, [np.asarray(x, np.float32).view(np.uint32)], here)

    def _read(self, address: Any, count: int, exists: Any) -> list[np.ndarray]:
        array, place = self._find(address, exists)
        assert not (place % (4 * count)).any(), "not aligned"
        return [np.where(_lanes(exists), self._words(array)[place // 4 + i], np.uint32(0)) for i in range(count)]

    def _words(self, array: int) -> np.ndarray:
        return self.arrays[array].reshape(-1).view(np.uint32)

    def _which(self, address: Any) -> int:
        (which,) = set(_lanes(address, np.int64) >> 40)
        return int(which) - 1

    def _find(self, address: Any, exists: Any) -> tuple[int, np.ndarray]:
        """The array, and how many bytes from its start; of lanes for which nothing exists none."""
        array = self._which(address)
        place = np.where(_lanes(exists), address - self.starts[array], 0)
        assert ((place >= 0) & (place < self.arrays[array].nbytes)).all(), "outside"
        return array, place


def _lanes(x: Any, dtype: Any = bool) -> np.ndarray:
    """Of every lane; of a predicate that is not there, yes."""
    return np.broadcast_to(np.asarray(True if x is None else x).astype(dtype), LANES)
