"""The integer instructions of a kernel's PTX, run on Python integers as one thread would."""

import operator
import re
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

WORD = 0xFFFFFFFF


def _lop3(a: int, b: int, c: int, table: int) -> int:
    chosen = [(a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c) for i in range(8) if table >> i & 1]
    return int(np.bitwise_or.reduce(np.array(chosen, np.int64))) & WORD


def _prmt(a: int, b: int, selector: int) -> int:
    data = a | b << 32
    return sum((data >> 8 * (selector >> 4 * i & 7) & 0xFF) << 8 * i for i in range(4))


INSTRUCTIONS = {
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
    "shl.b32": lambda a, by: a << by & WORD,
    "shr.u32": lambda a, by: a >> by,
    "add.s32": lambda a, b: a + b,
    "add.u32": lambda a, b: a + b & WORD,
    "mad.lo.u32": lambda a, b, c: a * b + c & WORD,
    "mul.lo.u32": lambda a, b: a * b & WORD,
    "sub.s32": lambda a, b: a - b,
    "mul.lo.s32": lambda a, b: a * b,
    "mad.lo.s32": lambda a, b, c: a * b + c,
    "mul.wide.u32": lambda a, b: a * b,
    "mad.lo.s64": lambda a, b, c: a * b + c,
    "mad.wide.s32": lambda a, b, c: a * b + c,
    "mad.wide.u32": lambda a, b, c: a * b + c,
    "min.u32": np.minimum,
    "min.s32": np.minimum,
    "max.s32": np.maximum,
    "div.u32": lambda a, b: a // b,
    "rem.u32": lambda a, b: a % b,
    "setp.lt.s32": lambda a, b: a < b,
    "setp.lt.u32": lambda a, b: a < b,
    "setp.eq.s32": lambda a, b: a == b,
    "setp.ne.s32": lambda a, b: a != b,
    "selp.b32": lambda a, b, p: a if p else b,
    "abs.f32": np.abs,
    "add.rn.f32": lambda a, b: a + b,
    "cvta.to.global.u64": lambda a: a,
    "mov.b32": lambda a: a,
    "lop3.b32": _lop3,
    "prmt.b32": _prmt,
}


# In place of `integers.arith`.
ARITH = SimpleNamespace(divui=operator.floordiv, remui=operator.mod)


def op(text: str, out: str, *ins: tuple[str, int]) -> int:
    """In place of `ptx.op`."""
    values = {f"i{i}": value for i, (_, value) in enumerate(ins)}
    text = text.format(o=["o0"], i=list(values)).strip("{} ")
    for line in filter(None, (line.strip() for line in text.split(";"))):
        name, rest = line.split(None, 1)
        if name != ".reg":
            target, *operands = re.split(r",\s*", rest)
            values[target] = INSTRUCTIONS[name](*(_value(operand, values) for operand in operands))
    return values["o0"]


def _value(operand: str, values: dict[str, int]) -> int:
    return values[operand] if operand in values else int(operand, 0)


class Memory:
    """What `ptx.load_words` and `ptx.load_byte` read."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.starts = np.cumsum([0] + [part.nbytes for part in parts])
        self.words = np.concatenate([part.reshape(-1).view(np.uint32) for part in parts])

    def load_byte(self, address: int, offset: int) -> int:
        return int(self.words.view(np.uint8)[address + offset])

    def load_words(self, address: int, offset: int, count: int) -> list[int]:
        first, left = divmod(address + offset, 4 * count)
        assert not left, "not aligned"
        return [int(word) for word in self.words[first * count : first * count + count]]
