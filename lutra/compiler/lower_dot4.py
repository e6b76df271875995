"""How dot4 becomes LLVM text: acc[i] + the sum of four products of bytes, on x86 and anywhere."""

from __future__ import annotations

from collections.abc import Callable

from lutra.compiler.emitter import Emitter, kind_of, result_type
from lutra.compiler.ir import Op, Value
from lutra.compiler.types import Type, i8, i16, i32, u8


def _dot4_vnni(e: Emitter, op: Op, intrinsic: str, lanes: int) -> str:
    kinds = [Type(dtype, count).llvm for dtype, count in ((i32, lanes), (u8, 4 * lanes), (i8, 4 * lanes))]
    parts = [
        e.call(kinds[0], intrinsic, *zip(kinds, operands, strict=True)) for operands in e.parts(op, op.operands, lanes)
    ]
    return e.join(parts, Type(i32, lanes))


def dot4_vnni512(e: Emitter, op: Op) -> str:
    return _dot4_vnni(e, op, "llvm.x86.avx512.vpdpbusd.512", 16)


def dot4_vnni256(e: Emitter, op: Op) -> str:
    return _dot4_vnni(e, op, "llvm.x86.avx512.vpdpbusd.256", 8)


def dot4_avxvnni(e: Emitter, op: Op) -> str:
    """LLVM shares the name; the encoding follows the features."""
    return dot4_vnni256(e, op)


def dot4_maddubs(e: Emitter, op: Op) -> str:
    """Sums of two products each, of all pairs added in 16 bits and widened once."""
    parts = []
    for acc, *operands in e.parts(op, op.operands, 8):
        total = ""
        for u, s in zip(operands[::2], operands[1::2], strict=True):
            pair = e.call("<16 x i16>", "llvm.x86.avx2.pmadd.ub.sw", ("<32 x i8>", u), ("<32 x i8>", s))
            total = e.line(f"add <16 x i16> {total}, {pair}") if total else pair
        ones = ("<16 x i16>", "splat (i16 1)")
        four = e.call("<8 x i32>", "llvm.x86.avx2.pmadd.wd", ("<16 x i16>", total), ones)
        parts.append(e.line(f"add <8 x i32> {acc}, {four}"))
    return e.join(parts, Type(i32, 8))


def dot4_madd(e: Emitter, op: Op) -> str:
    parts = []
    for acc, u, s in e.parts(op, op.operands, 8):
        parts.append(e.line(f"add <8 x i32> {acc}, {_sum_madd(e, u, s)}"))
    return e.join(parts, Type(i32, 8))


def _sum_madd(e: Emitter, u: str, s: str) -> str:
    """Even and odd bytes widened to 16 bits, multiplied in pairs: exact for any u8 and i8."""
    u16, s16 = (e.line(f"bitcast <32 x i8> {x} to <16 x i16>") for x in (u, s))
    u_even, u_odd = e.line(f"and <16 x i16> {u16}, splat (i16 255)"), e.line(f"lshr <16 x i16> {u16}, splat (i16 8)")
    s_even = e.line(f"ashr <16 x i16> {e.line(f'shl <16 x i16> {s16}, splat (i16 8)')}, splat (i16 8)")
    s_odd = e.line(f"ashr <16 x i16> {s16}, splat (i16 8)")
    even = e.call("<8 x i32>", "llvm.x86.avx2.pmadd.wd", ("<16 x i16>", u_even), ("<16 x i16>", s_even))
    odd = e.call("<8 x i32>", "llvm.x86.avx2.pmadd.wd", ("<16 x i16>", u_odd), ("<16 x i16>", s_odd))
    return e.line(f"add <8 x i32> {even}, {odd}")


def one_by_one(dot4: Callable[[Emitter, Op], str]) -> Callable[[Emitter, Op], str]:
    """A dot4_sum as dot4 after dot4."""

    def emit(e: Emitter, op: Op) -> str:
        acc, *operands = op.operands
        assert op.result is not None
        for i in range(0, len(operands), 2):
            step = Value(f"{op.result.name}.{i}", op.result.type)
            e.names[step.name] = dot4(e, Op("dot4", (acc, *operands[i : i + 2]), op.attributes, step, op.location))
            acc = step
        return e.of(acc)

    return emit


def dot4_plain(e: Emitter, op: Op) -> str:
    """Products of the even and of the odd bytes in 16 bits, which hold any u8 times i8, then sums in 32.

    Where 16 bits hold all products together they are added before they are widened.
    """
    acc, *operands = op.operands
    products = [x for a, b in zip(operands[::2], operands[1::2], strict=True) for x in _byte_products(e, a, b)]
    sums = result_type(op)
    if len(products) * op.attributes["bound"] * op.attributes["signed_bound"] < 2**15:
        total = products[0]
        for product in products[1:]:
            total = e.line(f"add {Type(i16, 2 * sums.lanes).llvm} {total}, {product}")
        products = [total]
    return _add_pairs(e, e.of(acc), sums, products)


def dot2x2_plain(e: Emitter, op: Op) -> str:
    """Two dot4 for each lane: of places 0..3 of its two rows, then of places 4..7."""
    acc, a, b = op.operands
    lanes = range(result_type(op).lanes)
    rows_of_a, rows_of_b = [lane // 2 for lane in lanes], [lane // 4 * 2 + lane % 2 for lane in lanes]
    fours = [
        _fours(e, f"{value.name}.{half}", value, [2 * row + half for row in rows])
        for half in (0, 1)
        for value, rows in ((a, rows_of_a), (b, rows_of_b))
    ]
    return dot4_plain(e, Op("dot4_sum", (acc, *fours), op.attributes, op.result, op.location))


def _fours(e: Emitter, name: str, value: Value, picks: list[int]) -> Value:
    """Groups of four bytes by their numbers."""
    kind = kind_of(value)
    indices = ", ".join(f"i32 {4 * pick + i}" for pick in picks for i in range(4))
    vector = f"<{4 * len(picks)} x i32> <{indices}>"
    e.names[name] = e.line(f"shufflevector {kind.llvm} {e.of(value)}, {kind.llvm} poison, {vector}")
    return Value(name, Type(kind.dtype, 4 * len(picks)))


def _byte_products(e: Emitter, a: Value, b: Value) -> tuple[str, str]:
    """a * b of the even bytes and of the odd bytes, as i16."""
    pairs = Type(i16, kind_of(a).lanes // 2)
    u = e.line(f"bitcast {kind_of(a).llvm} {e.of(a)} to {pairs.llvm}")
    s = e.line(f"bitcast {kind_of(b).llvm} {e.of(b)} to {pairs.llvm}")
    eight = e.constant(pairs, 8)
    u_even = e.line(f"and {pairs.llvm} {u}, {e.constant(pairs, 255)}")
    u_odd = e.line(f"lshr {pairs.llvm} {u}, {eight}")
    s_even = e.line(f"ashr {pairs.llvm} {e.line(f'shl {pairs.llvm} {s}, {eight}')}, {eight}")
    s_odd = e.line(f"ashr {pairs.llvm} {s}, {eight}")
    return e.line(f"mul {pairs.llvm} {u_even}, {s_even}"), e.line(f"mul {pairs.llvm} {u_odd}, {s_odd}")


def _add_pairs(e: Emitter, total: str, sums: Type, parts: list[str]) -> str:
    """total[i] + part[2 i] + part[2 i + 1] for each part of i16."""
    sixteen = e.constant(sums, 16)
    for part in parts:
        wide = e.line(f"bitcast {Type(i16, 2 * sums.lanes).llvm} {part} to {sums.llvm}")
        low = e.line(f"ashr {sums.llvm} {e.line(f'shl {sums.llvm} {wide}, {sixteen}')}, {sixteen}")
        high = e.line(f"ashr {sums.llvm} {wide}, {sixteen}")
        total = e.line(f"add {sums.llvm} {e.line(f'add {sums.llvm} {total}, {low}')}, {high}")
    return total
