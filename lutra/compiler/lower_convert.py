"""How element types are converted: with the CPU's f16 instructions where it has them, else on the bits."""

from __future__ import annotations

from lutra.compiler.emitter import Emitter, kind_of, result_type
from lutra.compiler.ir import Op
from lutra.compiler.types import Type, bf16, f16, f32, i16, i32


def convert(e: Emitter, op: Op) -> str:
    source, result = kind_of(op.operands[0]), result_type(op)
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
    kinds = {kind_of(op.operands[0]).dtype, result_type(op).dtype}
    return kinds == {f16, f32}


def convert_half_native(e: Emitter, op: Op) -> str:
    source, result = kind_of(op.operands[0]), result_type(op)
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
        return self.e.choose(condition, self.int, yes, no)

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
