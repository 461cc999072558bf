"""Integers of a thread, in PTX: places, counts, and predicates that are 0 or 1."""

from jaxlib.mlir.dialects import arith

from pallas_kernels import ptx
from pallas_kernels.ptx import Value


def integer(text: str, *operands: Value | int) -> Value:
    return ptx.op(text, "r", *(("r", _value(x)) for x in operands))


def plus(x: Value | int, y: Value | int) -> Value:
    return integer("add.s32 {o[0]}, {i[0]}, {i[1]};", x, y)


def minus(x: Value | int, y: Value | int) -> Value:
    return integer("sub.s32 {o[0]}, {i[0]}, {i[1]};", x, y)


def times(x: Value, factor: int) -> Value:
    return integer("mul.lo.s32 {o[0]}, {i[0]}, {i[1]};", x, factor)


def times_plus(x: Value | int, factor: int, offset: Value) -> Value:
    return integer("mad.lo.s32 {o[0]}, {i[0]}, {i[1]}, {i[2]};", x, factor, offset)


def quotient(x: Value, divisor: int) -> Value:
    """Not in PTX, where a divisor that is a constant is divided by like any other."""
    return arith.divui(x, _value(divisor))


def remainder(x: Value, divisor: int) -> Value:
    return arith.remui(x, _value(divisor))


def least(x: Value, bound: Value | int) -> Value:
    return integer("min.s32 {o[0]}, {i[0]}, {i[1]};", x, bound)


def at_least(x: Value, bound: int) -> Value:
    return integer("max.s32 {o[0]}, {i[0]}, {i[1]};", x, bound)


def below(x: Value, bound: Value | int, and_: Value | int = 1) -> Value:
    text = "{{ .reg .pred p; setp.lt.s32 p, {i[0]}, {i[1]}; selp.b32 {o[0]}, {i[2]}, 0, p; }}"
    return integer(text, x, bound, and_)


def positive(x: Value, and_: Value) -> Value:
    text = "{{ .reg .pred p; setp.gt.s32 p, {i[0]}, 0; selp.b32 {o[0]}, {i[1]}, 0, p; }}"
    return integer(text, x, and_)


def _value(x: Value | int) -> Value:
    return ptx.constant(x, "r") if isinstance(x, int) else x
