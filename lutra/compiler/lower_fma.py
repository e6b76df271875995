"""Fused multiply-add: the instruction, or what lutra/fused.py does instead."""

from __future__ import annotations

from lutra.compiler.emitter import Emitter, result_type
from lutra.compiler.ir import Op
from lutra.compiler.lower import suffix


def fma_native(e: Emitter, op: Op) -> str:
    kind = result_type(op)
    return e.call(kind.llvm, f"llvm.fma.{suffix(kind)}", *((kind.llvm, e.of(operand)) for operand in op.operands))


def fma_in_f64(e: Emitter, op: Op) -> str:
    """By a function of its own: it is long."""
    kind = result_type(op)
    e.declarations.add(text(kind.lanes))
    operands = ", ".join(f"{kind.llvm} {e.of(operand)}" for operand in op.operands)
    return e.line(f"call {kind.llvm} @lutra_fma.{kind.lanes}({operands})")


# lutra/fused.py, line by line, for LANES lanes, where that is needed: the sum is rounded to f64, then to f32, which is
# as good as once unless the f64 lies halfway between two f32, the 29 bits that it has more being 100...0, or the f32 is
# below the usual size.  Both are rare, and finding out takes half of the time.
TEXT = """define internal FLOAT @lutra_fma.LANES(FLOAT %a, FLOAT %b, FLOAT %c) noinline nounwind {
  %x = fpext FLOAT %a to DOUBLE
  %y = fpext FLOAT %b to DOUBLE
  %addend = fpext FLOAT %c to DOUBLE
  %product = fmul DOUBLE %x, %y
  %total = fadd DOUBLE %product, %addend
  %twice = fptrunc DOUBLE %total to FLOAT
  %words = bitcast DOUBLE %total to WORDS
  %more = and WORDS %words, MORE
  %halfway = icmp eq WORDS %more, HALFWAY
  %image = bitcast FLOAT %twice to WORD
  %size = and WORD %image, splat (i32 2147483647)
  %small = icmp ule WORD %size, splat (i32 8388608)
  %all.halfway = bitcast <PAIRS x i1> %halfway to iPAIRS
  %all.small = bitcast BOOL %small to iLANES
  %some.halfway = icmp ne iPAIRS %all.halfway, 0
  %some.small = icmp ne iLANES %all.small, 0
  %some = or i1 %some.halfway, %some.small
  br i1 %some, label %once, label %done
done:
  ret FLOAT %twice
once:
  %second = fsub DOUBLE %total, %product
  %first = fsub DOUBLE %total, %second
  %lost = fsub DOUBLE %product, %first
  %lost.too = fsub DOUBLE %addend, %second
  %error = fadd DOUBLE %lost, %lost.too
  %above = fcmp ogt DOUBLE %error, zeroinitializer
  %below = fcmp olt DOUBLE %error, zeroinitializer
  %positive = fcmp ogt DOUBLE %total, zeroinitializer
  %bits = bitcast DOUBLE %total to INT
  %last = trunc INT %bits to BOOL
  %even = xor BOOL %last, splat (i1 true)
  %inexact = or BOOL %above, %below
  %wrong = and BOOL %inexact, %even
  %inwards = xor BOOL %above, %positive
  %step = select BOOL %inwards, INT splat (i64 -1), INT splat (i64 1)
  %correction = select BOOL %wrong, INT %step, INT zeroinitializer
  %odd = add INT %bits, %correction
  %wide = bitcast INT %odd to DOUBLE
  %result = fptrunc DOUBLE %wide to FLOAT
  ret FLOAT %result
}"""


def text(lanes: int) -> str:
    """LLVM's text of lutra_fma.LANES for vectors of so many lanes, at least 2."""
    masks = {"MORE": (2**29 - 1, 0), "HALFWAY": (2**28, -1)}  # of the low and the high word of an f64
    body = TEXT
    for word, pair in masks.items():
        body = body.replace(word, f"<{', '.join([f'i32 {number}' for number in pair] * lanes)}>")
    body = body.replace("WORDS", f"<{2 * lanes} x i32>").replace("PAIRS", str(2 * lanes))
    kinds = {"FLOAT": "float", "DOUBLE": "double", "INT": "i64", "BOOL": "i1", "WORD": "i32"}
    for word, kind in kinds.items():
        body = body.replace(word, f"<{lanes} x {kind}>")
    return body.replace("LANES", str(lanes))
