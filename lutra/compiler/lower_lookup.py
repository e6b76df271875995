"""How lookups in tables of 16 and of 128 bytes become LLVM text."""

from __future__ import annotations

from collections.abc import Callable

from lutra.compiler.emitter import Emitter, kind_of, result_type
from lutra.compiler.ir import Op
from lutra.compiler.types import Type, u8

_BYTES = "<16 x i8>"


def _each_part(e: Emitter, op: Op, lanes: int, found: Callable[[str], str]) -> str:
    """`found` looks up `lanes` indices."""
    return e.join([found(index) for (index,) in e.parts(op, op.operands[1:], lanes)], Type(u8, lanes))


# ---- lookup: a 16-byte table ----------------------------------------------------------------------------------------


def _lookup_pshufb(e: Emitter, op: Op, intrinsic: str, lanes: int) -> str:
    kind = Type(u8, lanes)
    picks = ", ".join(f"i32 {i % 16}" for i in range(lanes))
    table = e.line(f"shufflevector <16 x i8> {e.of(op.operands[0])}, <16 x i8> poison, <{lanes} x i32> <{picks}>")
    return _each_part(e, op, lanes, lambda index: e.call(kind.llvm, intrinsic, (kind.llvm, table), (kind.llvm, index)))


def lookup_pshufb512(e: Emitter, op: Op) -> str:
    return _lookup_pshufb(e, op, "llvm.x86.avx512.pshuf.b.512", 64)


def lookup_pshufb256(e: Emitter, op: Op) -> str:
    return _lookup_pshufb(e, op, "llvm.x86.avx2.pshuf.b", 32)


def lookup_tbl(e: Emitter, op: Op) -> str:
    table = (_BYTES, e.of(op.operands[0]))
    return _each_part(e, op, 16, lambda index: e.call(_BYTES, "llvm.aarch64.neon.tbl1.v16i8", table, (_BYTES, index)))


def lookup_plain(e: Emitter, op: Op) -> str:
    """Four rounds of selects: bit 3 of the index picks between entries 8 apart, bit 2 between 4 apart, ..."""
    table, index = op.operands
    kind = result_type(op)
    vector = kind.llvm
    mask = f"<{kind.lanes} x i1>"
    row = []
    for entry in range(16):
        byte = e.line(f"extractelement <16 x i8> {e.of(table)}, i32 {entry}")
        first = e.line(f"insertelement {vector} poison, i8 {byte}, i32 0")
        row.append(e.line(f"shufflevector {vector} {first}, {vector} poison, <{kind.lanes} x i32> zeroinitializer"))
    for bit in (3, 2, 1, 0):
        hit = e.line(f"and {vector} {e.of(index)}, {e.constant(kind, 1 << bit)}")
        is_set = e.line(f"icmp ne {vector} {hit}, zeroinitializer")
        half = 1 << bit
        row = [e.line(f"select {mask} {is_set}, {vector} {row[i + half]}, {vector} {row[i]}") for i in range(half)]
    return row[0]


# ---- lookup: a 128-byte table ---------------------------------------------------------------------------------------

_TABLE = Type(u8, 128)


def lookup_vpermi2b(e: Emitter, op: Op) -> str:
    """The two halves of the table are two registers."""
    half = Type(u8, 64).llvm
    low, high = (e.part(e.of(op.operands[0]), _TABLE, start, 64) for start in (0, 64))

    def found(index: str) -> str:
        return e.call(half, "llvm.x86.avx512.vpermi2var.qi.512", (half, low), (half, index), (half, high))

    return _each_part(e, op, 64, found)


def lookup_eight_pshufb(e: Emitter, op: Op) -> str:
    """Bits 3..0 look up in eight tables of 16; bits 4, 5 and 6 choose between the findings, two by two."""
    kind = Type(u8, 32)
    tables = []
    for start in range(0, 128, 16):
        picks = ", ".join(f"i32 {start + i % 16}" for i in range(32))
        table = e.of(op.operands[0])
        tables.append(e.line(f"shufflevector <128 x i8> {table}, <128 x i8> poison, <32 x i32> <{picks}>"))

    def found(index: str) -> str:
        low = e.line(f"and {kind.llvm} {index}, splat (i8 15)")
        row = [e.call(kind.llvm, "llvm.x86.avx2.pshuf.b", (kind.llvm, table), (kind.llvm, low)) for table in tables]
        for bit in (4, 5, 6):
            top = e.line(f"shl {kind.llvm} {index}, splat (i8 {7 - bit})")  # to the sign, which vpblendvb reads
            is_set = e.line(f"icmp slt {kind.llvm} {top}, zeroinitializer")
            pairs = zip(row[::2], row[1::2], strict=True)
            row = [e.line(f"select <32 x i1> {is_set}, {kind.llvm} {b}, {kind.llvm} {a}") for a, b in pairs]
        return row[0]

    return _each_part(e, op, 32, found)


def lookup_two_tbl4(e: Emitter, op: Op) -> str:
    """tbl gives 0 for an index beyond its 64 entries, so the two findings are or-ed."""
    rows = [e.part(e.of(op.operands[0]), _TABLE, start, 16) for start in range(0, 128, 16)]

    def found(index: str) -> str:
        beyond = e.line(f"sub {_BYTES} {index}, splat (i8 64)")
        halves = [
            e.call(_BYTES, "llvm.aarch64.neon.tbl4.v16i8", *((_BYTES, row) for row in four), (_BYTES, at))
            for four, at in ((rows[:4], index), (rows[4:], beyond))
        ]
        return e.line(f"or {_BYTES} {halves[0]}, {halves[1]}")

    return _each_part(e, op, 16, found)


def lookup_memory(e: Emitter, op: Op) -> str:
    """One byte after the other, from a copy of the table in memory: a function of its own, so that code stays short."""
    table, index = (e.of(operand) for operand in op.operands)
    kind, entries = Type(u8, result_type(op).lanes), kind_of(op.operands[0])
    name = f"lookup{entries.lanes}x{kind.lanes}"
    e.declarations.add(
        f"""define internal {kind.llvm} @{name}({entries.llvm} %table, {kind.llvm} %index) noinline nounwind {{
enter:
  %entries = alloca {entries.llvm}, align 64
  %lanes = alloca {kind.llvm}, align 64
  store {entries.llvm} %table, ptr %entries
  store {kind.llvm} %index, ptr %lanes
  br label %again
again:
  %i = phi i64 [ 0, %enter ], [ %next, %again ]
  %lane = getelementptr i8, ptr %lanes, i64 %i
  %pick = load i8, ptr %lane
  %wide = zext i8 %pick to i64
  %entry = getelementptr i8, ptr %entries, i64 %wide
  %byte = load i8, ptr %entry
  store i8 %byte, ptr %lane
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, {kind.lanes}
  br i1 %more, label %again, label %done
done:
  %found = load {kind.llvm}, ptr %lanes
  ret {kind.llvm} %found
}}"""
    )
    return e.line(f"call {kind.llvm} @{name}({entries.llvm} {table}, {kind.llvm} {index})")
