"""How dot4 becomes LLVM text: acc[i] + the sum of four products of bytes, on x86 and anywhere."""

from __future__ import annotations

from collections.abc import Callable

from lutra.compiler.emitter import Emitter, kind_of, result_type
from lutra.compiler.ir import Op, Value
from lutra.compiler.types import Type, i8, i16, i32, u8


def _dot4_vnni(e: Emitter, op: Op, intrinsic: str, lanes: int) -> str:
    acc, a, b = op.operands
    sums, bytes_u, bytes_s = Type(i32, lanes), Type(u8, 4 * lanes), Type(i8, 4 * lanes)
    parts = []
    for start in range(0, result_type(op).lanes, lanes):
        x = e.part(e.of(acc), kind_of(acc), start, lanes)
        u = e.part(e.of(a), kind_of(a), 4 * start, 4 * lanes)
        s = e.part(e.of(b), kind_of(b), 4 * start, 4 * lanes)
        parts.append(e.call(sums.llvm, intrinsic, (sums.llvm, x), (bytes_u.llvm, u), (bytes_s.llvm, s)))
    return e.join(parts, sums)


def dot4_vnni512(e: Emitter, op: Op) -> str:
    return _dot4_vnni(e, op, "llvm.x86.avx512.vpdpbusd.512", 16)


def dot4_vnni256(e: Emitter, op: Op) -> str:
    return _dot4_vnni(e, op, "llvm.x86.avx512.vpdpbusd.256", 8)


def dot4_avxvnni(e: Emitter, op: Op) -> str:
    return _dot4_vnni(
        e, op, "llvm.x86.avx512.vpdpbusd.256", 8
    )  # LLVM shares the name; the encoding follows the features


def _dot4_avx2(e: Emitter, op: Op, quad: str) -> str:
    """8 sums at a time; `quad` is 'maddubs' or 'madd'."""
    acc, a, b = op.operands
    parts = []
    for start in range(0, result_type(op).lanes, 8):
        u = e.part(e.of(a), kind_of(a), 4 * start, 32)
        s = e.part(e.of(b), kind_of(b), 4 * start, 32)
        four = _sum_maddubs(e, u, s) if quad == "maddubs" else _sum_madd(e, u, s)
        parts.append(e.line(f"add <8 x i32> {e.part(e.of(acc), kind_of(acc), start, 8)}, {four}"))
    return e.join(parts, Type(i32, 8))


def _sum_maddubs(e: Emitter, u: str, s: str) -> str:
    pairs = e.call("<16 x i16>", "llvm.x86.avx2.pmadd.ub.sw", ("<32 x i8>", u), ("<32 x i8>", s))
    return e.call("<8 x i32>", "llvm.x86.avx2.pmadd.wd", ("<16 x i16>", pairs), ("<16 x i16>", "splat (i16 1)"))


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


def dot4_sum_maddubs(e: Emitter, op: Op) -> str:
    """Sums of two products each are added in 16 bits, and widened once."""
    acc, *operands = op.operands
    parts = []
    for start in range(0, result_type(op).lanes, 8):
        halves = [e.part(e.of(x), kind_of(x), 4 * start, 32) for x in operands]
        total = ""
        for u, s in zip(halves[::2], halves[1::2], strict=True):
            pair = e.call("<16 x i16>", "llvm.x86.avx2.pmadd.ub.sw", ("<32 x i8>", u), ("<32 x i8>", s))
            total = e.line(f"add <16 x i16> {total}, {pair}") if total else pair
        ones = ("<16 x i16>", "splat (i16 1)")
        four = e.call("<8 x i32>", "llvm.x86.avx2.pmadd.wd", ("<16 x i16>", total), ones)
        parts.append(e.line(f"add <8 x i32> {e.part(e.of(acc), kind_of(acc), start, 8)}, {four}"))
    return e.join(parts, Type(i32, 8))


def dot4_maddubs(e: Emitter, op: Op) -> str:
    return _dot4_avx2(e, op, "maddubs")


def dot4_madd(e: Emitter, op: Op) -> str:
    return _dot4_avx2(e, op, "madd")


def dot4_plain(e: Emitter, op: Op) -> str:
    """Products of the even and of the odd bytes in 16 bits, which hold any u8 times i8, then sums in 32."""
    acc, a, b = op.operands
    even, odd = _byte_products(e, a, b)
    if 2 * op.attributes["bound"] * op.attributes["signed_bound"] < 2**15:
        return _add_pairs(e, e.of(acc), result_type(op), [e.line(f"add {_shorts(op)} {even}, {odd}")])
    return _add_pairs(e, e.of(acc), result_type(op), [even, odd])


def dot4_sum_plain(e: Emitter, op: Op) -> str:
    """All products added in 16 bits, widened once."""
    acc, *operands = op.operands
    products = [x for a, b in zip(operands[::2], operands[1::2], strict=True) for x in _byte_products(e, a, b)]
    total = products[0]
    for product in products[1:]:
        total = e.line(f"add {_shorts(op)} {total}, {product}")
    return _add_pairs(e, e.of(acc), result_type(op), [total])


def _shorts(op: Op) -> str:
    return Type(i16, 2 * result_type(op).lanes).llvm


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
