"""Registers and inline PTX inside a Pallas kernel: the one place here that touches Mosaic GPU's insides.

Pallas offers no product whose left operand was made in 8-bit registers, nothing that keeps two products in one asm
statement, and no packed conversions; so the inner loop works on a thread's own registers. A bag is such a list of
registers on its way through Pallas values: its array shape means nothing, only the number of registers a thread holds.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic.gpu import fragmented_array as fa
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, scf

from pallas_kernels.mosaic import WARPGROUP

Value = Any
# The letters of PTX constraints: an integer, a float, an address.
_TYPES: dict[str, Callable[[], Any]] = {
    "r": lambda: ir.IntegerType.get_signless(32),
    "f": lambda: ir.F32Type.get(),
    "l": lambda: ir.IntegerType.get_signless(64),
}
_DTYPES = {"r": jnp.int32, "f": jnp.float32}
SCALAR = plgpu.Layout.WG_SPLAT(())
REF = plgpu.RefType()


# Bags.


def bag(count: int, kind: str) -> Any:
    """The type of `count` registers a thread."""
    layout = plgpu.Layout.WG_STRIDED((count * WARPGROUP,), vec_size=1)
    return plgpu.ShapeDtypeStruct((count * WARPGROUP,), _DTYPES[kind], layout=layout)


def unpack(array: fa.FragmentedArray) -> list[Value]:
    return [_scalar(register) for register in array.registers.flat]


def pack(registers: Sequence[Value], kind: str) -> fa.FragmentedArray:
    vectors = np.array([_vector([register], kind) for register in registers], dtype=object)
    layout = fa.WGStridedFragLayout((len(vectors) * WARPGROUP,), vec_size=1)
    return fa.FragmentedArray(_registers=vectors, _layout=layout, _is_signed=True if kind == "r" else None)


def accumulator(registers: Sequence[Value], columns: int) -> fa.FragmentedArray:
    """The registers of a 64-row f32 product as an array that Pallas can store."""
    pairs = np.empty(len(registers) // 2, dtype=object)
    for i in range(len(pairs)):
        pairs[i] = _vector(registers[2 * i : 2 * i + 2], "f")
    shaped = pairs.reshape(fa.WGMMA_LAYOUT.registers_shape((64, columns)))
    return fa.FragmentedArray(_registers=shaped, _layout=fa.WGMMA_LAYOUT, _is_signed=None)


def _vector(registers: Sequence[Value], kind: str) -> Value:
    vector = llvm.mlir_undef(ir.VectorType.get((len(registers),), _TYPES[kind]()))
    for i, register in enumerate(registers):
        vector = llvm.insertelement(vector, register, constant(i, "r"))
    return vector


def _scalar(register: Value) -> Value:
    if isinstance(register.type, ir.VectorType):
        return llvm.extractelement(register, constant(0, "r"))
    return register


# Instructions.


def emit(
    text: str,
    out: str = "",
    ins: Sequence[tuple[str, Value]] = (),
    tied: Sequence[tuple[str, Value]] = (),
    volatile: bool = False,
) -> list[Value]:
    """Inline PTX. `out` lists the kinds of fresh outputs, `tied` are registers read and written.

    In the text `{o[i]}`, `{t[i]}` and `{i[i]}` name fresh outputs, tied registers and inputs. Returns the outputs,
    fresh ones first.
    """
    kinds = list(out) + [kind for kind, _ in tied]
    fresh, both = len(out), len(tied)
    names = {
        "o": [f"${i}" for i in range(fresh)],
        "t": [f"${fresh + i}" for i in range(both)],
        "i": [f"${fresh + 2 * both + i}" for i in range(len(ins))],
    }
    constraints = [f"={kind}" for kind in kinds]
    constraints += [str(fresh + i) for i in range(both)] + [kind for kind, _ in ins]
    types = [_TYPES[kind]() for kind in kinds]
    asm = llvm.inline_asm(
        _result_type(types),
        [value for _, value in tied] + [value for _, value in ins],
        text.format(**names),
        ",".join(constraints),
        asm_dialect=0,
        has_side_effects=volatile,
    )
    if len(types) <= 1:
        return [asm] if types else []
    return [llvm.extractvalue(kind, asm, [i]) for i, kind in enumerate(types)]


def _result_type(types: list[Any]) -> Any:
    if not types:
        return ir.Type.parse("!llvm.void")
    return types[0] if len(types) == 1 else llvm.StructType.get_literal(types)


def op(text: str, out: str, *ins: tuple[str, Value]) -> Value:
    """A pure instruction, or a few, with one result."""
    return emit(text, out, ins)[0]


def constant(x: float, kind: str) -> Value:
    return arith.constant(_TYPES["r"](), x) if kind == "r" else utils.c(x, _TYPES[kind]())


def when(here: Value, work: Callable[[], Any], like: Any) -> Any:
    """What `work` makes, registers in lists like those of `like`, where the integer `here` is not 0; else zeros.

    A branch: for what whole warps do or leave.
    """
    values, tree = jax.tree.flatten(like)
    is_here = arith.cmpi(arith.CmpIPredicate.ne, here, constant(0, "r"))
    branch = scf.IfOp(is_here, [value.type for value in values], has_else=True)
    with ir.InsertionPoint(branch.then_block):
        scf.yield_(jax.tree.leaves(work()))
    with ir.InsertionPoint(branch.else_block):
        scf.yield_([utils.c(0, value.type) for value in values])
    return jax.tree.unflatten(tree, branch.results)


def own_zero() -> Value:
    """A zero in a register of its own, for an accumulator of wgmma.

    Constants share one register. ptxas then moves it into place between the products, says so (C7511) and serializes
    every wgmma of the kernel.
    """
    return emit("mov.f32 {o[0]}, 0f00000000;", "f", volatile=True)[0]


def fma(x: Value, scale: Value, offset: Value) -> Value:
    return op("fma.rn.f32 {o[0]}, {i[0]}, {i[1]}, {i[2]};", "f", ("f", x), ("f", scale), ("f", offset))


def fma_f16x2(x: Value, scale: Value, offset: Value) -> Value:
    return op("fma.rn.f16x2 {o[0]}, {i[0]}, {i[1]}, {i[2]};", "r", ("r", x), ("r", scale), ("r", offset))


def add_f16x2(x: Value, y: Value) -> Value:
    return op("add.rn.f16x2 {o[0]}, {i[0]}, {i[1]};", "r", ("r", x), ("r", y))


def twice_f16(x: float) -> Value:
    """The same f16 in both halves of a register."""
    return constant(int(np.float16(x).view(np.uint16)) * 0x10001 - (1 << 32 if x < 0 else 0), "r")


def multiply(x: Value, y: Value) -> Value:
    return op("mul.rn.f32 {o[0]}, {i[0]}, {i[1]};", "f", ("f", x), ("f", y))


def add(x: Value, y: Value, kind: str = "f") -> Value:
    name = {"f": "rn.f32", "r": "s32"}[kind]
    return op(f"add.{name} {{o[0]}}, {{i[0]}}, {{i[1]}};", kind, (kind, x), (kind, y))


def subtract(x: Value, y: Value) -> Value:
    return op("sub.rn.f32 {o[0]}, {i[0]}, {i[1]};", "f", ("f", x), ("f", y))


def maximum(x: Value, y: Value, kind: str) -> Value:
    name = {"r": "s32", "f": "f32"}[kind]
    return op(f"max.{name} {{o[0]}}, {{i[0]}}, {{i[1]}};", kind, (kind, x), (kind, y))


def to_float(x: Value) -> Value:
    return op("cvt.rn.f32.s32 {o[0]}, {i[0]};", "f", ("r", x))


def exp2(x: Value) -> Value:
    """The special unit's exp2 alone; without ftz it takes three more instructions, for subnormals."""
    return op("ex2.approx.ftz.f32 {o[0]}, {i[0]};", "f", ("f", x))


def log2(x: Value) -> Value:
    return op("lg2.approx.f32 {o[0]}, {i[0]};", "f", ("f", x))


def reciprocal(x: Value) -> Value:
    return op("rcp.approx.f32 {o[0]}, {i[0]};", "f", ("f", x))


def to_bf16(pair: Sequence[Value]) -> Value:
    """Two f32 to the halves of a register, the first lower."""
    return op("cvt.rn.bf16x2.f32 {o[0]}, {i[1]}, {i[0]};", "r", *(("f", x) for x in pair))


def to_e4m3(four: Sequence[Value]) -> Value:
    """Four f32 to the bytes of a register, the first lowest."""
    text = (
        "{{ .reg .b16 l, h; cvt.rn.satfinite.e4m3x2.f32 l, {i[1]}, {i[0]}; "
        "cvt.rn.satfinite.e4m3x2.f32 h, {i[3]}, {i[2]}; mov.b32 {o[0]}, {{l, h}}; }}"
    )
    return op(text, "r", *(("f", x) for x in four))


def mma_bf16(left: Sequence[Value], right0: Value, right1: Value, sums: Sequence[Value] | None = None) -> list[Value]:
    """Of one warp: 16 × 16 bf16 with 16 × 8, added to the f32 sums."""
    zero = constant(0.0, "f")
    text = (
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{{o[0]}, {o[1]}, {o[2]}, {o[3]}}}, "
        "{{{i[0]}, {i[1]}, {i[2]}, {i[3]}}}, {{{i[4]}, {i[5]}}}, {{{i[6]}, {i[7]}, {i[8]}, {i[9]}}};"
    )
    ins = [("r", x) for x in (*left, right0, right1)] + [("f", x) for x in (sums or [zero] * 4)]
    return emit(text, "ffff", ins)


def across_lanes(
    x: Value, kind: str, combine: Callable[[Value, Value], Value], distances: Sequence[int] = (1, 2)
) -> Value:
    """Over the four lanes that share a row of a product, or lanes that far apart."""
    for distance in distances:
        text = f"shfl.sync.bfly.b32 {{o[0]}}, {{i[0]}}, {distance}, 31, 0xffffffff;"
        x = combine(x, emit(text, kind, [(kind, x)], volatile=True)[0])
    return x


def wait_for_warpgroup() -> None:
    """All four warps are here, and what they read they have. Called as a step of a kernel, not in the middle of PTX.

    Of a cluster's barrier a warpgroup's first threads arrive for all of it, whatever its other warps still do.
    """

    @plgpu.inline_mgpu(arg_types=())
    def run(_):
        utils.warpgroup_barrier()

    run()


# Where a thread is, and memory.


def thread_row() -> Value:
    """The first of a thread's two rows of a product; the second is eight further."""
    text = (
        "{{ .reg .b32 a, b; mov.u32 a, %tid.x; shr.u32 b, a, 5; and.b32 b, b, 3; shl.b32 b, b, 4; "
        "and.b32 a, a, 31; shr.u32 a, a, 2; add.u32 {o[0]}, a, b; }}"
    )
    return op(text, "r")


def thread_column() -> Value:
    """Which of the four lanes of a row a thread is: it holds two columns of every eight."""
    return op("{{ .reg .b32 a; mov.u32 a, %tid.x; and.b32 {o[0]}, a, 3; }}", "r")


def thread_in_cta() -> Value:
    return op("mov.u32 {o[0]}, %tid.x;", "r")


def load_global(ref: Value, offset: Value, kind: str = "f") -> Value:
    """32 bits of an array in device memory, `offset` values from its start."""
    text = (
        "{{ .reg .b64 p; mul.wide.s32 p, {i[1]}, 4; add.s64 p, p, {i[0]}; cvta.to.global.u64 p, p; "
        "ld.global.b32 {o[0]}, [p]; }}"
    )
    return emit(text, kind, [("l", address(ref)), ("r", offset)], volatile=True)[0]


def store_global(ref: Value, offset: Value, x: Value, here: Value, kind: str = "f") -> None:
    """Store 32 bits where the predicate `here` (an integer) is not zero."""
    text = (
        "{{ .reg .b64 p; .reg .pred q; setp.ne.s32 q, {i[3]}, 0; mul.wide.s32 p, {i[1]}, 4; add.s64 p, p, {i[0]}; "
        "cvta.to.global.u64 p, p; @q st.global.b32 [p], {i[2]}; }}"
    )
    emit(text, "", [("l", address(ref)), ("r", offset), (kind, x), ("r", here)], volatile=True)


def shared_address(ref: Value) -> Value:
    return op("cvt.u32.u64 {o[0]}, {i[0]};", "r", ("l", address(ref)))


def load_shared(address: Value, offset: int) -> list[Value]:
    """Four f32."""
    text = f"ld.shared.v4.f32 {{{{{{o[0]}}, {{o[1]}}, {{o[2]}}, {{o[3]}}}}}}, [{{i[0]}} + {offset}];"
    return emit(text, "ffff", [("r", address)], volatile=True)


def store_shared(address: Value, offset: int, four: Sequence[Value]) -> None:
    text = f"st.shared.v4.f32 [{{i[0]}} + {offset}], {{{{{{i[1]}}, {{i[2]}}, {{i[3]}}, {{i[4]}}}}}};"
    emit(text, "", [("r", address), *(("f", x) for x in four)], volatile=True)


def load_words(address: Value, offset: int, count: int) -> list[Value]:
    """Two or four integers of shared memory."""
    names = ", ".join(f"{{o[{i}]}}" for i in range(count))
    text = f"ld.shared.v{count}.b32 {{{{{names}}}}}, [{{i[0]}} + {offset}];"
    return emit(text, "r" * count, [("r", address)], volatile=True)


def load_floats(address: Value, offset: int) -> list[Value]:
    """Two f32."""
    text = f"ld.shared.v2.f32 {{{{{{o[0]}}, {{o[1]}}}}}}, [{{i[0]}} + {offset}];"
    return emit(text, "ff", [("r", address)], volatile=True)


def load_byte(address: Value, offset: int) -> Value:
    return emit(f"ld.shared.u8 {{o[0]}}, [{{i[0]}} + {offset}];", "r", [("r", address)], volatile=True)[0]


def load_sixteen(instruction: str, address: tuple[str, Value], offset: int, exists: Value | None) -> list[Value]:
    """Sixteen bytes. Zeros where nothing exists."""
    load = f"{instruction}.v4.b32 {{{{{{o[0]}}, {{o[1]}}, {{o[2]}}, {{o[3]}}}}}}, [{{i[0]}} + {offset}];"
    if exists is None:
        return emit(load, "rrrr", [address], volatile=True)
    zeros = " ".join(f"mov.b32 {{o[{i}]}}, 0;" for i in range(4))
    text = f"{{{{ .reg .pred p; setp.ne.s32 p, {{i[1]}}, 0; {zeros} @p {load} }}}}"
    return emit(text, "rrrr", [address, ("r", exists)], volatile=True)


def descriptor(ref: Value, *, stride: int, leading: int = 0, swizzle: int) -> Value:
    """What wgmma reads of a matrix in shared memory: byte strides between cores of eight lines, along both axes."""
    fields = (leading >> 4) << 16 | (stride >> 4) << 32 | {128: 1, 64: 2, 32: 3}[swizzle] << 62
    text = "{{ .reg .b64 a; shr.u64 a, {i[0]}, 4; and.b64 a, a, 0x3fff; or.b64 {o[0]}, a, " + hex(fields) + "; }}"
    return op(text, "l", ("l", address(ref)))


def address(ref: Value) -> Value:
    return llvm.ptrtoint(_TYPES["l"](), utils.memref_ptr(ref))


def global_address(ref: Value, index: Value, size: int) -> Value:
    """Of one of an array's values, in device memory."""
    text = f"{{{{ .reg .b64 p; mad.wide.u32 p, {{i[1]}}, {size}, {{i[0]}}; cvta.to.global.u64 {{o[0]}}, p; }}}}"
    return op(text, "l", ("l", address(ref)), ("r", index))
