"""How dot4 becomes LLVM text on ARM: four sums of 16 products of bytes at a time."""

from __future__ import annotations

from collections.abc import Callable

from lutra.compiler.emitter import Emitter
from lutra.compiler.ir import Op
from lutra.compiler.types import Type, i8, i32

_FOUR, _BYTES, _HALF, _SHORTS = "<4 x i32>", "<16 x i8>", "<8 x i8>", "<8 x i16>"


def _dot4_arm(e: Emitter, op: Op, four: Callable[[Emitter, str, str, str], str]) -> str:
    """`four` gives acc + sums for vectors of 4 sums."""
    parts = [four(e, acc, u, s) for acc, u, s in e.parts(op, op.operands, 4)]
    return e.join(parts, Type(i32, 4))


def _dot_instruction(e: Emitter, name: str, acc: str, a: str, b: str) -> str:
    return e.call(_FOUR, f"llvm.aarch64.neon.{name}.v4i32.v16i8", (_FOUR, acc), (_BYTES, a), (_BYTES, b))


def _minus_128(e: Emitter, u: str) -> str:
    """u - 128 as signed bytes, for an unsigned operand that does not fit them; 128 * sum of s makes up for it."""
    return e.line(f"xor {_BYTES} {u}, splat (i8 -128)")


def dot4_usdot(e: Emitter, op: Op) -> str:
    return _dot4_arm(e, op, lambda e, acc, u, s: _dot_instruction(e, "usdot", acc, u, s))


def dot2x2_usmmla(e: Emitter, op: Op) -> str:
    return _dot4_arm(e, op, lambda e, acc, u, s: _dot_instruction(e, "usmmla", acc, u, s))


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
    """For unsigned operands up to 127: two products are at most 2 * 127 * 128 < 2**15.

    Products of all pairs are added in 16 bits (smlal), and widened once.
    """
    parts = []
    for acc, *operands in e.parts(op, op.operands, 4):
        totals: list[str] = []
        for u, s in zip(operands[::2], operands[1::2], strict=True):
            products = _products(e, u, s)
            sums = [e.line(f"add {_SHORTS} {a}, {b}") for a, b in zip(totals, products, strict=False)]
            totals = sums or products
        parts.append(e.line(f"add {_FOUR} {acc}, {_sum_quads_16_bits(e, *totals)}"))
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
