"""How single operations become LLVM text, generic ones and those with an instruction of their own."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from lutra.compiler.ir import Op, Value
from lutra.compiler.types import Type, bf16, f16, f32, i8, i16, i32, u8

ARITHMETIC = ("add", "sub", "mul", "div", "quotient", "remainder", "and", "or", "xor", "shl", "shr")
COMPARISONS = ("lt", "le", "gt", "ge", "eq")


@dataclass
class Emitter:
    """Collects LLVM lines; `line` returns the name of the value it defines."""

    lines: list[str] = field(default_factory=list)
    declarations: set[str] = field(default_factory=set)
    names: dict[str, str] = field(default_factory=dict)  # IR value → LLVM value
    count: int = 0

    def line(self, text: str) -> str:
        self.count += 1
        name = f"%t{self.count}"
        self.lines.append(f"  {name} = {text}")
        return name

    def of(self, value: Value) -> str:
        return self.names[value.name]

    def call(self, result: str, intrinsic: str, *args: tuple[str, str]) -> str:
        """Call an LLVM intrinsic with (type, value) arguments."""
        types = ", ".join(kind for kind, _ in args)
        self.declarations.add(f"declare {result} @{intrinsic}({types})")
        return self.line(f"call {result} @{intrinsic}({', '.join(f'{kind} {value}' for kind, value in args)})")

    def part(self, value: str, kind: Type, start: int, lanes: int) -> str:
        """Lanes start .. start + lanes - 1 of a vector."""
        if lanes == kind.lanes:
            return value
        picks = ", ".join(f"i32 {start + i}" for i in range(lanes))
        return self.line(f"shufflevector {kind.llvm} {value}, {kind.llvm} poison, <{lanes} x i32> <{picks}>")

    def join(self, parts: list[str], kind: Type) -> str:
        """Concatenate equal vectors of type `kind`; their number is a power of two."""
        while len(parts) > 1:
            picks = ", ".join(f"i32 {i}" for i in range(2 * kind.lanes))
            parts = [
                self.line(f"shufflevector {kind.llvm} {a}, {kind.llvm} {b}, <{2 * kind.lanes} x i32> <{picks}>")
                for a, b in zip(parts[::2], parts[1::2], strict=True)
            ]
            kind = Type(kind.dtype, 2 * kind.lanes)
        return parts[0]

    def constant(self, kind: Type, number: int | float) -> str:
        text = float_text(float(number)) if kind.dtype == f32 else str(int(number))
        if kind.lanes == 1:
            return text
        return f"splat ({kind.dtype.llvm} {text})"


def float_text(number: float) -> str:
    """An f32 in LLVM's exact spelling: the hexadecimal image of the same value as a double."""
    single = struct.unpack("<f", struct.pack("<f", number))[0]
    return f"0x{struct.unpack('<Q', struct.pack('<d', single))[0]:016X}"


def kind_of(value: Value) -> Type:
    assert isinstance(value.type, Type)
    return value.type


def _result(op: Op) -> Type:
    assert op.result is not None
    return kind_of(op.result)


# ---- generic ----------------------------------------------------------------------------------------------------

_INT_WORDS = {"add": "add", "sub": "sub", "mul": "mul", "and": "and", "or": "or", "xor": "xor", "shl": "shl"}
_FLOAT_WORDS = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_SIGNED_WORDS = {"quotient": "sdiv", "remainder": "srem", "shr": "ashr"}
_UNSIGNED_WORDS = {"quotient": "udiv", "remainder": "urem", "shr": "lshr"}


def arithmetic(e: Emitter, op: Op) -> str:
    kind = _result(op)
    signed = _SIGNED_WORDS if kind.dtype.kind == "int" else _UNSIGNED_WORDS
    words = _FLOAT_WORDS if kind.dtype.is_float else {**_INT_WORDS, **signed}
    a, b = map(e.of, op.operands)
    return e.line(f"{words[op.name]} {kind.llvm} {a}, {b}")


def comparison(e: Emitter, op: Op) -> str:
    kind = kind_of(op.operands[0])
    a, b = map(e.of, op.operands)
    if kind.dtype.is_float:
        return e.line(f"fcmp o{op.name} {kind.llvm} {a}, {b}" if op.name != "eq" else f"fcmp oeq {kind.llvm} {a}, {b}")
    sign = "" if op.name == "eq" else "s" if kind.dtype.kind == "int" else "u"
    return e.line(f"icmp {sign}{op.name} {kind.llvm} {a}, {b}")


def _compare(e: Emitter, word: str, kind: Type, a: str, b: str) -> str:
    prefix = "fcmp o" if kind.dtype.is_float else "icmp s" if kind.dtype.kind == "int" else "icmp u"
    return e.line(f"{prefix}{word} {kind.llvm} {a}, {b}")


def _choose(e: Emitter, condition: str, kind: Type, a: str, b: str) -> str:
    mask = Type(kind.dtype, kind.lanes).llvm.replace(kind.dtype.llvm, "i1") if kind.lanes > 1 else "i1"
    return e.line(f"select {mask} {condition}, {kind.llvm} {a}, {kind.llvm} {b}")


def min_max(e: Emitter, op: Op) -> str:
    kind = _result(op)
    a, b = map(e.of, op.operands)
    return _choose(e, _compare(e, "lt" if op.name == "min" else "gt", kind, a, b), kind, a, b)


def absolute(e: Emitter, op: Op) -> str:
    kind = _result(op)
    a = e.of(op.operands[0])
    if not kind.dtype.is_float:
        return e.call(kind.llvm, f"llvm.abs.{_suffix(kind)}", (kind.llvm, a), ("i1", "false"))
    return e.call(kind.llvm, f"llvm.fabs.{_suffix(kind)}", (kind.llvm, a))


def _suffix(kind: Type) -> str:
    scalar = "f32" if kind.dtype == f32 else f"i{kind.dtype.bits}"
    return scalar if kind.lanes == 1 else f"v{kind.lanes}{scalar}"


def square_root(e: Emitter, op: Op) -> str:
    kind = _result(op)
    return e.call(kind.llvm, f"llvm.sqrt.{_suffix(kind)}", (kind.llvm, e.of(op.operands[0])))


def round_even(e: Emitter, op: Op) -> str:
    """Adding and subtracting 1.5 * 2**23 leaves the nearest integer, on every CPU, with no rounding instruction."""
    kind = _result(op)
    magic = e.constant(kind, 12582912.0)
    shifted = e.line(f"fadd {kind.llvm} {e.of(op.operands[0])}, {magic}")
    return e.line(f"fsub {kind.llvm} {shifted}, {magic}")


def select(e: Emitter, op: Op) -> str:
    condition, a, b = map(e.of, op.operands)
    return _choose(e, condition, _result(op), a, b)


def bitcast(e: Emitter, op: Op) -> str:
    source, result = kind_of(op.operands[0]), _result(op)
    if source.llvm == result.llvm:
        return e.of(op.operands[0])
    return e.line(f"bitcast {source.llvm} {e.of(op.operands[0])} to {result.llvm}")


def splat(e: Emitter, op: Op) -> str:
    kind = _result(op)
    first = e.line(f"insertelement {kind.llvm} poison, {kind.dtype.llvm} {e.of(op.operands[0])}, i32 0")
    return e.line(f"shufflevector {kind.llvm} {first}, {kind.llvm} poison, <{kind.lanes} x i32> zeroinitializer")


def shuffle(e: Emitter, op: Op) -> str:
    source, result = kind_of(op.operands[0]), _result(op)
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
    while kind.lanes > 1:
        half = Type(kind.dtype, kind.lanes // 2)
        low, high = e.part(value, kind, 0, half.lanes), e.part(value, kind, half.lanes, half.lanes)
        kind = half
        if op.name == "reduce_add":
            value = e.line(
                f"{'fadd' if kind.dtype.is_float else 'add'} <{kind.lanes} x {kind.dtype.llvm}> {low}, {high}"
            )
        else:
            one = Type(kind.dtype, kind.lanes)
            vector = f"<{one.lanes} x {one.dtype.llvm}>"
            prefix = "fcmp o" if one.dtype.is_float else "icmp s" if one.dtype.kind == "int" else "icmp u"
            greater = e.line(f"{prefix}gt {vector} {low}, {high}")
            value = e.line(f"select <{one.lanes} x i1> {greater}, {vector} {low}, {vector} {high}")
        if kind.lanes == 1:
            return e.line(f"extractelement <1 x {kind.dtype.llvm}> {value}, i32 0")
    return value


# ---- conversions ------------------------------------------------------------------------------------------------


def convert(e: Emitter, op: Op) -> str:
    source, result = kind_of(op.operands[0]), _result(op)
    value = e.of(op.operands[0])
    if source.dtype == f16:
        return _f16_to_f32(e, value, source.lanes)
    if source.dtype == bf16:
        wide = e.line(f"zext {source.llvm} {value} to {Type(i32, source.lanes).llvm}")
        bits = e.line(f"shl {Type(i32, source.lanes).llvm} {wide}, {e.constant(Type(i32, source.lanes), 16)}")
        return e.line(f"bitcast {Type(i32, source.lanes).llvm} {bits} to {result.llvm}")
    if result.dtype == f16:
        return _f32_to_f16(e, value, source.lanes)
    if result.dtype == bf16:
        return _f32_to_bf16(e, value, source.lanes)
    if source.dtype.is_float:
        return e.line(f"{'fptosi' if result.dtype.kind == 'int' else 'fptoui'} {source.llvm} {value} to {result.llvm}")
    if result.dtype.is_float:
        return e.line(f"{'sitofp' if source.dtype.kind == 'int' else 'uitofp'} {source.llvm} {value} to {result.llvm}")
    if source.dtype.bits == result.dtype.bits:
        return value
    if source.dtype.bits > result.dtype.bits:
        return e.line(f"trunc {source.llvm} {value} to {result.llvm}")
    return e.line(f"{'sext' if source.dtype.kind == 'int' else 'zext'} {source.llvm} {value} to {result.llvm}")


def is_half_conversion(op: Op) -> bool:
    """Between f16 and f32, which vcvtph2ps and its kind (x86), fcvt and fcvtl (ARM) do."""
    kinds = {kind_of(op.operands[0]).dtype, _result(op).dtype}
    return kinds == {f16, f32}


def convert_half_native(e: Emitter, op: Op) -> str:
    source, result = kind_of(op.operands[0]), _result(op)
    half = "half" if source.lanes == 1 else f"<{source.lanes} x half>"
    if source.dtype == f16:
        value = e.line(f"bitcast {source.llvm} {e.of(op.operands[0])} to {half}")
        return e.line(f"fpext {half} {value} to {result.llvm}")
    value = e.line(f"fptrunc {source.llvm} {e.of(op.operands[0])} to {half}")
    return e.line(f"bitcast {half} {value} to {result.llvm}")


class _Bits:
    """Integer arithmetic on the bits of f32 lanes, for the conversions below."""

    def __init__(self, e: Emitter, lanes: int):
        self.e, self.int, self.float = e, Type(i32, lanes), Type(f32, lanes)

    def op(self, word: str, a: str, number: int) -> str:
        return self.e.line(f"{word} {self.int.llvm} {a}, {self.e.constant(self.int, number)}")

    def two(self, word: str, a: str, b: str) -> str:
        return self.e.line(f"{word} {self.int.llvm} {a}, {b}")

    def choose(self, word: str, a: str, number: int, yes: str, no: str) -> str:
        condition = self.e.line(f"icmp {word} {self.int.llvm} {a}, {self.e.constant(self.int, number)}")
        return _choose(self.e, condition, self.int, yes, no)

    def as_float(self, a: str) -> str:
        return self.e.line(f"bitcast {self.int.llvm} {a} to {self.float.llvm}")

    def as_int(self, a: str) -> str:
        return self.e.line(f"bitcast {self.float.llvm} {a} to {self.int.llvm}")


def _f16_to_f32(e: Emitter, value: str, lanes: int) -> str:
    """Move exponent and mantissa up 13 bits and rescale by 2**112; exact for subnormals too."""
    b = _Bits(e, lanes)
    wide = e.line(f"zext {Type(i16, lanes).llvm} {value} to {b.int.llvm}")
    magnitude = b.op("and", wide, 0x7FFF)
    small = b.as_float(b.op("shl", magnitude, 13))
    scaled = b.as_int(e.line(f"fmul {b.float.llvm} {small}, {e.constant(b.float, 2.0**112)}"))
    finite_or_not = b.choose("uge", magnitude, 0x7C00, b.op("or", scaled, 0x7F800000), scaled)
    sign = b.op("shl", b.op("and", wide, 0x8000), 16)
    return b.as_float(b.two("or", finite_or_not, sign))


def _f32_to_f16(e: Emitter, value: str, lanes: int) -> str:
    """Round to even: normals by integer carry, subnormals by adding 0.5 (whose ulp is f16's smallest step)."""
    b = _Bits(e, lanes)
    bits = b.as_int(value)
    magnitude = b.op("and", bits, 0x7FFFFFFF)
    odd = b.op("and", b.op("lshr", magnitude, 13), 1)
    rounded = b.two("add", b.op("add", magnitude, 0xFFF - (112 << 23)), odd)
    normal = b.op("lshr", rounded, 13)
    half = e.constant(b.float, 0.5)
    sum_bits = b.as_int(e.line(f"fadd {b.float.llvm} {b.as_float(magnitude)}, {half}"))
    subnormal = b.op("sub", sum_bits, 0x3F000000)
    finite = b.choose("ult", magnitude, 0x38800000, subnormal, normal)
    infinite = e.constant(b.int, 0x7C00)
    limited = b.choose("uge", magnitude, 0x477FF000, infinite, finite)
    with_nan = b.choose("ugt", magnitude, 0x7F800000, e.constant(b.int, 0x7E00), limited)
    sign = b.op("and", b.op("lshr", bits, 16), 0x8000)
    return e.line(f"trunc {b.int.llvm} {b.two('or', with_nan, sign)} to {Type(i16, lanes).llvm}")


def _f32_to_bf16(e: Emitter, value: str, lanes: int) -> str:
    """Add half of the dropped range (and the kept low bit, for ties) and drop 16 bits."""
    b = _Bits(e, lanes)
    bits = b.as_int(value)
    odd = b.op("and", b.op("lshr", bits, 16), 1)
    rounded = b.op("lshr", b.two("add", b.op("add", bits, 0x7FFF), odd), 16)
    magnitude = b.op("and", bits, 0x7FFFFFFF)
    safe = b.choose("ugt", magnitude, 0x7F800000, e.constant(b.int, 0x7FC0), rounded)
    return e.line(f"trunc {b.int.llvm} {safe} to {Type(i16, lanes).llvm}")


# ---- dot4: acc[i] + sum of four byte products ---------------------------------------------------------------------


def _dot4_vnni(e: Emitter, op: Op, intrinsic: str, lanes: int) -> str:
    acc, a, b = op.operands
    sums, bytes_u, bytes_s = Type(i32, lanes), Type(u8, 4 * lanes), Type(i8, 4 * lanes)
    parts = []
    for start in range(0, _result(op).lanes, lanes):
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
    for start in range(0, _result(op).lanes, 8):
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
    for start in range(0, _result(op).lanes, 8):
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
        return _add_pairs(e, e.of(acc), _result(op), [e.line(f"add {_shorts(op)} {even}, {odd}")])
    return _add_pairs(e, e.of(acc), _result(op), [even, odd])


def dot4_sum_plain(e: Emitter, op: Op) -> str:
    """All products added in 16 bits, widened once."""
    acc, *operands = op.operands
    products = [x for a, b in zip(operands[::2], operands[1::2], strict=True) for x in _byte_products(e, a, b)]
    total = products[0]
    for product in products[1:]:
        total = e.line(f"add {_shorts(op)} {total}, {product}")
    return _add_pairs(e, e.of(acc), _result(op), [total])


def _shorts(op: Op) -> str:
    return Type(i16, 2 * _result(op).lanes).llvm


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


# ---- dot4 on ARM: four sums of 16 byte products ----------------------------------------------------------------------

_FOUR, _BYTES, _HALF, _SHORTS = "<4 x i32>", "<16 x i8>", "<8 x i8>", "<8 x i16>"


def _dot4_arm(e: Emitter, op: Op, four: Callable[[Emitter, str, str, str], str]) -> str:
    """`four` gives acc + sums for vectors of 4 sums."""
    acc, a, b = op.operands
    parts = []
    for start in range(0, _result(op).lanes, 4):
        x = e.part(e.of(acc), kind_of(acc), start, 4)
        u = e.part(e.of(a), kind_of(a), 4 * start, 16)
        s = e.part(e.of(b), kind_of(b), 4 * start, 16)
        parts.append(four(e, x, u, s))
    return e.join(parts, Type(i32, 4))


def _dot_instruction(e: Emitter, name: str, acc: str, a: str, b: str) -> str:
    return e.call(_FOUR, f"llvm.aarch64.neon.{name}.v4i32.v16i8", (_FOUR, acc), (_BYTES, a), (_BYTES, b))


def _minus_128(e: Emitter, u: str) -> str:
    """u - 128 as signed bytes, for an unsigned operand that does not fit them; 128 * sum of s makes up for it."""
    return e.line(f"xor {_BYTES} {u}, splat (i8 -128)")


def dot4_usdot(e: Emitter, op: Op) -> str:
    return _dot4_arm(e, op, lambda e, acc, u, s: _dot_instruction(e, "usdot", acc, u, s))


def dot4_sdot(e: Emitter, op: Op) -> str:
    """For unsigned operands up to 127, which are signed bytes as well."""
    return _dot4_arm(e, op, lambda e, acc, u, s: _dot_instruction(e, "sdot", acc, u, s))


def dot4_sdot_minus_128(e: Emitter, op: Op) -> str:
    """For any unsigned operand.  The correction depends on s alone: LLVM keeps it for all that meet the same s."""

    def four(e: Emitter, acc: str, u: str, s: str) -> str:
        by_64 = _dot_instruction(e, "sdot", "zeroinitializer", s, "splat (i8 64)")
        by_128 = e.line(f"shl {_FOUR} {by_64}, splat (i32 1)")
        return _dot_instruction(e, "sdot", e.line(f"add {_FOUR} {acc}, {by_128}"), _minus_128(e, u), s)

    return _dot4_arm(e, op, four)


def _pairwise(e: Emitter, shorts: str) -> str:
    """Sums of neighbours of 8 i16, as 4 i32."""
    return e.call(_FOUR, "llvm.aarch64.neon.saddlp.v4i32.v8i16", (_SHORTS, shorts))


def _products(e: Emitter, a: str, b: str) -> list[str]:
    """16 products of signed bytes, as two vectors of 8 i16."""
    products = []
    for start in (0, 8):
        x, y = (e.part(v, Type(i8, 16), start, 8) for v in (a, b))
        products.append(e.call(_SHORTS, "llvm.aarch64.neon.smull.v8i16", (_HALF, x), (_HALF, y)))
    return products


def _sum_quads_16_bits(e: Emitter, low: str, high: str) -> str:
    """Sums of 4 neighbouring products; two must fit 16 bits."""
    pairs = e.call(_SHORTS, "llvm.aarch64.neon.addp.v8i16", (_SHORTS, low), (_SHORTS, high))
    return _pairwise(e, pairs)


def _sum_quads_32_bits(e: Emitter, low: str, high: str) -> str:
    """Sums of 4 neighbouring products of any size."""
    pairs = [_pairwise(e, products) for products in (low, high)]
    return e.call(_FOUR, "llvm.aarch64.neon.addp.v4i32", (_FOUR, pairs[0]), (_FOUR, pairs[1]))


def dot4_smull(e: Emitter, op: Op) -> str:
    """For unsigned operands up to 127: two products are at most 2 * 127 * 128 < 2**15."""

    def four(e: Emitter, acc: str, u: str, s: str) -> str:
        return e.line(f"add {_FOUR} {acc}, {_sum_quads_16_bits(e, *_products(e, u, s))}")

    return _dot4_arm(e, op, four)


def dot4_sum_smull(e: Emitter, op: Op) -> str:
    """Products of all pairs are added in 16 bits (smlal), and widened once."""
    acc, *operands = op.operands
    parts = []
    for start in range(0, _result(op).lanes, 4):
        quarters = [e.part(e.of(x), kind_of(x), 4 * start, 16) for x in operands]
        totals: list[str] = []
        for u, s in zip(quarters[::2], quarters[1::2], strict=True):
            products = _products(e, u, s)
            sums = [e.line(f"add {_SHORTS} {a}, {b}") for a, b in zip(totals, products, strict=False)]
            totals = sums or products
        four = _sum_quads_16_bits(e, *totals)
        parts.append(e.line(f"add {_FOUR} {e.part(e.of(acc), kind_of(acc), start, 4)}, {four}"))
    return e.join(parts, Type(i32, 4))


def dot4_smull_minus_128(e: Emitter, op: Op) -> str:
    """For any unsigned operand; only -128 * -128 twice leaves 16 bits."""
    sum_quads = _sum_quads_16_bits if op.attributes["signed_bound"] < 128 else _sum_quads_32_bits

    def four(e: Emitter, acc: str, u: str, s: str) -> str:
        quads = _pairwise(e, e.call(_SHORTS, "llvm.aarch64.neon.saddlp.v8i16.v16i8", (_BYTES, s)))
        by_128 = e.line(f"shl {_FOUR} {quads}, splat (i32 7)")
        sums = sum_quads(e, *_products(e, _minus_128(e, u), s))
        return e.line(f"add {_FOUR} {e.line(f'add {_FOUR} {acc}, {by_128}')}, {sums}")

    return _dot4_arm(e, op, four)


# ---- lookup: a 16-byte table ----------------------------------------------------------------------------------------


def _lookup_pshufb(e: Emitter, op: Op, intrinsic: str, lanes: int) -> str:
    table, index = op.operands
    kind = Type(u8, lanes)
    picks = ", ".join(f"i32 {i % 16}" for i in range(lanes))
    wide = e.line(f"shufflevector <16 x i8> {e.of(table)}, <16 x i8> poison, <{lanes} x i32> <{picks}>")
    parts = []
    for start in range(0, _result(op).lanes, lanes):
        part = e.part(e.of(index), kind_of(index), start, lanes)
        parts.append(e.call(kind.llvm, intrinsic, (kind.llvm, wide), (kind.llvm, part)))
    return e.join(parts, kind)


def lookup_pshufb512(e: Emitter, op: Op) -> str:
    return _lookup_pshufb(e, op, "llvm.x86.avx512.pshuf.b.512", 64)


def lookup_pshufb256(e: Emitter, op: Op) -> str:
    return _lookup_pshufb(e, op, "llvm.x86.avx2.pshuf.b", 32)


def lookup_tbl(e: Emitter, op: Op) -> str:
    table, index = op.operands
    parts = []
    for start in range(0, _result(op).lanes, 16):
        part = e.part(e.of(index), kind_of(index), start, 16)
        parts.append(e.call(_BYTES, "llvm.aarch64.neon.tbl1.v16i8", (_BYTES, e.of(table)), (_BYTES, part)))
    return e.join(parts, Type(u8, 16))


def lookup_plain(e: Emitter, op: Op) -> str:
    """Four rounds of selects: bit 3 of the index picks between entries 8 apart, bit 2 between 4 apart, ..."""
    table, index = op.operands
    kind = _result(op)
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


def _each_part(e: Emitter, op: Op, lanes: int, found: Callable[[str], str]) -> str:
    """`found` looks up `lanes` indices."""
    index = op.operands[1]
    starts = range(0, _result(op).lanes, lanes)
    return e.join([found(e.part(e.of(index), kind_of(index), start, lanes)) for start in starts], Type(u8, lanes))


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
    kind, entries = Type(u8, _result(op).lanes), kind_of(op.operands[0])
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
