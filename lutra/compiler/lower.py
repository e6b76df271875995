"""How the everyday operations become LLVM text: the same on every target."""

from __future__ import annotations

from lutra.compiler.emitter import Emitter, kind_of, result_type
from lutra.compiler.ir import Op
from lutra.compiler.types import Type, f32

ARITHMETIC = ("add", "sub", "mul", "div", "quotient", "remainder", "and", "or", "xor", "shl", "shr")
COMPARISONS = ("lt", "le", "gt", "ge", "eq")


_INT_WORDS = {"add": "add", "sub": "sub", "mul": "mul", "and": "and", "or": "or", "xor": "xor", "shl": "shl"}
_FLOAT_WORDS = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_SIGNED_WORDS = {"quotient": "sdiv", "remainder": "srem", "shr": "ashr"}
_UNSIGNED_WORDS = {"quotient": "udiv", "remainder": "urem", "shr": "lshr"}


def arithmetic(e: Emitter, op: Op) -> str:
    kind = result_type(op)
    signed = _SIGNED_WORDS if kind.dtype.kind == "int" else _UNSIGNED_WORDS
    words = _FLOAT_WORDS if kind.dtype.is_float else {**_INT_WORDS, **signed}
    a, b = map(e.of, op.operands)
    return e.line(f"{words[op.name]} {kind.llvm} {a}, {b}")


def comparison(e: Emitter, op: Op) -> str:
    kind = kind_of(op.operands[0])
    a, b = map(e.of, op.operands)
    return e.line(f"{_test(op.name, kind)} {kind.llvm} {a}, {b}")


def _test(word: str, kind: Type) -> str:
    """LLVM's word for lt, le, gt, ge or eq of numbers of a kind."""
    if kind.dtype.is_float:
        return f"fcmp o{word}"
    return f"icmp {word}" if word == "eq" else f"icmp {'s' if kind.dtype.kind == 'int' else 'u'}{word}"


def min_max(e: Emitter, op: Op) -> str:
    kind = result_type(op)
    a, b = map(e.of, op.operands)
    test = _test("lt" if op.name == "min" else "gt", kind)
    return e.choose(e.line(f"{test} {kind.llvm} {a}, {b}"), kind, a, b)


def absolute(e: Emitter, op: Op) -> str:
    kind = result_type(op)
    a = e.of(op.operands[0])
    if not kind.dtype.is_float:
        return e.call(kind.llvm, f"llvm.abs.{suffix(kind)}", (kind.llvm, a), ("i1", "false"))
    return e.call(kind.llvm, f"llvm.fabs.{suffix(kind)}", (kind.llvm, a))


def suffix(kind: Type) -> str:
    scalar = "f32" if kind.dtype == f32 else f"i{kind.dtype.bits}"
    return scalar if kind.lanes == 1 else f"v{kind.lanes}{scalar}"


def square_root(e: Emitter, op: Op) -> str:
    kind = result_type(op)
    return e.call(kind.llvm, f"llvm.sqrt.{suffix(kind)}", (kind.llvm, e.of(op.operands[0])))


def round_even(e: Emitter, op: Op) -> str:
    """Adding and subtracting 1.5 * 2**23 leaves the nearest integer, on every CPU, with no rounding instruction."""
    kind = result_type(op)
    magic = e.constant(kind, 12582912.0)
    shifted = e.line(f"fadd {kind.llvm} {e.of(op.operands[0])}, {magic}")
    return e.line(f"fsub {kind.llvm} {shifted}, {magic}")


def select(e: Emitter, op: Op) -> str:
    condition, a, b = map(e.of, op.operands)
    return e.choose(condition, result_type(op), a, b)


def bitcast(e: Emitter, op: Op) -> str:
    source, result = kind_of(op.operands[0]), result_type(op)
    if source.llvm == result.llvm:
        return e.of(op.operands[0])
    return e.line(f"bitcast {source.llvm} {e.of(op.operands[0])} to {result.llvm}")


def splat(e: Emitter, op: Op) -> str:
    kind = result_type(op)
    first = e.line(f"insertelement {kind.llvm} poison, {kind.dtype.llvm} {e.of(op.operands[0])}, i32 0")
    return e.line(f"shufflevector {kind.llvm} {first}, {kind.llvm} poison, <{kind.lanes} x i32> zeroinitializer")


def shuffle(e: Emitter, op: Op) -> str:
    source, result = kind_of(op.operands[0]), result_type(op)
    a, b = map(e.of, op.operands)
    vector = f"<{source.lanes} x {source.dtype.llvm}>"
    if source.lanes == 1:
        a, b = (e.line(f"insertelement {vector} poison, {source.dtype.llvm} {x}, i32 0") for x in (a, b))
    picks = ", ".join(f"i32 {i}" for i in op.attributes["indices"])
    wide = e.line(f"shufflevector {vector} {a}, {vector} {b}, <{len(op.attributes['indices'])} x i32> <{picks}>")
    return wide if result.lanes > 1 else e.line(f"extractelement <1 x {result.dtype.llvm}> {wide}, i32 0")


def extract(e: Emitter, op: Op) -> str:
    source = kind_of(op.operands[0])
    if source.lanes == 1:
        return e.of(op.operands[0])
    return e.line(f"extractelement {source.llvm} {e.of(op.operands[0])}, i32 {op.attributes['lane']}")


def reduction(e: Emitter, op: Op) -> str:
    kind, value = kind_of(op.operands[0]), e.of(op.operands[0])
    if kind.lanes == 1:
        return value
    add = "fadd" if kind.dtype.is_float else "add"
    while kind.lanes > 1:
        half = kind.lanes // 2
        low, high = (e.part(value, kind, start, half) for start in (0, half))
        kind, vector = Type(kind.dtype, half), f"<{half} x {kind.dtype.llvm}>"  # also of one lane
        if op.name == "reduce_add":
            value = e.line(f"{add} {vector} {low}, {high}")
        else:
            greater = e.line(f"{_test('gt', kind)} {vector} {low}, {high}")
            value = e.line(f"select <{half} x i1> {greater}, {vector} {low}, {vector} {high}")
    return e.line(f"extractelement <1 x {kind.dtype.llvm}> {value}, i32 0")
