"""What each operation means in NumPy, and how each instruction set does it.

INSTRUCTIONS maps an operation's name to rows, best first.  A row says which CPU features it needs, when it applies,
and how to emit it; the last row of every operation needs nothing and is plain LLVM vector code, so every kernel
runs on every target.  MEANING is the definition; every row must equal it bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lutra import fused
from lutra.compiler import lower, lower_convert, lower_dot4, lower_dot4_arm, lower_fma, lower_lookup
from lutra.compiler.emitter import Emitter
from lutra.compiler.ir import Op
from lutra.compiler.types import DType, Type

Array = Any  # numpy scalar or array; lanes = 1 values are zero-dimensional


@dataclass(frozen=True)
class Instruction:
    """One way to emit an operation."""

    emit: Callable[[Emitter, Op], str]
    needs: frozenset[str] = frozenset()
    applies: Callable[[Op], bool] = lambda op: True


def _check_promises(a: Array, b: Array, bound: int, signed_bound: int) -> None:
    assert int(a.max()) <= bound, f"a dot product was promised operands <= {bound}, got {int(a.max())}"
    largest = int(np.abs(b.astype(np.int32)).max())
    assert largest <= signed_bound, f"a dot product was promised |signed operands| <= {signed_bound}, got {largest}"


def _dot4(acc: Array, a: Array, b: Array, bound: int, signed_bound: int) -> Array:
    _check_promises(a, b, bound, signed_bound)
    products = a.astype(np.int32).reshape(-1, 4) * b.astype(np.int32).reshape(-1, 4)
    return acc + products.sum(1, dtype=np.int32)


def _dot4_sum(acc: Array, *operands: Array, bound: int, signed_bound: int) -> Array:
    for a, b in zip(operands[::2], operands[1::2], strict=True):
        acc = _dot4(acc, a, b, bound, signed_bound)
    return acc


def _dot2x2(acc: Array, a: Array, b: Array, bound: int, signed_bound: int) -> Array:
    _check_promises(a, b, bound, signed_bound)
    left, right = (x.astype(np.int32).reshape(-1, 2, 8) for x in (a, b))  # [square, row, place]
    return acc + (left @ right.transpose(0, 2, 1)).reshape(-1)


def _round_even(a: Array) -> Array:
    assert np.all(np.abs(a) < 2**22), "round_even is defined for |a| < 2**22"
    return np.rint(a)


def _halve(a: Array, combine: Callable[[Array, Array], Array]) -> Array:
    while a.size > 1:
        half = a.size // 2
        a = combine(a[:half], a[half:])
    return a.reshape(())[()]


def _where(condition: Array, a: Array, b: Array) -> Array:
    chosen: Array = np.where(condition, a, b)
    return chosen[()]  # a scalar stays a scalar


def convert(a: Array, dtype: DType) -> Array:
    """NumPy's casts are the language's: truncating, extending, round to even."""
    return a.astype(dtype.numpy)


def bitcast(a: Array, result: Type) -> Array:
    bits = np.ascontiguousarray(a).reshape(-1).view(result.dtype.numpy)
    return bits if result.lanes > 1 else bits[0]


def _shift(a: Array, b: Array, direction: str) -> Array:
    assert np.all((b >= 0) & (b < a.dtype.itemsize * 8)), "shift distance must be smaller than the element"
    return np.left_shift(a, b) if direction == "left" else np.right_shift(a, b)


def _divided(a: Array, b: Array, operation: np.ufunc) -> Array:
    assert np.all(a >= 0) and np.all(b > 0), "// and % are defined for a >= 0 and b > 0: CPUs cut where Python floors"
    return operation(a, b)


MEANING: dict[str, Callable[..., Array]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "quotient": lambda a, b: _divided(a, b, np.floor_divide),
    "remainder": lambda a, b: _divided(a, b, np.remainder),
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "shl": lambda a, b: _shift(a, b, "left"),
    "shr": lambda a, b: _shift(a, b, "right"),
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "min": lambda a, b: _where(a < b, a, b),
    "max": lambda a, b: _where(a > b, a, b),
    "abs": np.abs,
    "sqrt": np.sqrt,
    "fma": fused.fma,
    "round_even": _round_even,
    "select": lambda c, a, b: _where(c, a, b),
    "reduce_add": lambda a: _halve(a, np.add),
    "reduce_max": lambda a: _halve(a, lambda x, y: _where(x > y, x, y)),
    "dot4": _dot4,
    "dot4_sum": _dot4_sum,
    "dot2x2": _dot2x2,
    "lookup": lambda table, index: table[index],
}

_X86_512 = frozenset({"avx512bw"})
_X86_256 = frozenset({"avx2"})
_NEON, _DOTPROD = frozenset({"neon"}), frozenset({"dotprod"})

# These take the pairs of a dot4_sum too, and add them before they widen
_ADDING_IN_16_BITS = (lower_dot4.dot4_maddubs, lower_dot4_arm.dot4_smull, lower_dot4.dot4_plain)

INSTRUCTIONS: dict[str, tuple[Instruction, ...]] = {
    **{name: (Instruction(lower.arithmetic),) for name in lower.ARITHMETIC},
    **{name: (Instruction(lower.comparison),) for name in lower.COMPARISONS},
    "min": (Instruction(lower.min_max),),
    "max": (Instruction(lower.min_max),),
    "abs": (Instruction(lower.absolute),),
    "sqrt": (Instruction(lower.square_root),),
    "fma": (
        Instruction(lower_fma.fma_native, frozenset({"fma"})),
        Instruction(lower_fma.fma_native, _NEON),
        Instruction(lower_fma.fma_in_f64),
    ),
    "round_even": (Instruction(lower.round_even),),
    "select": (Instruction(lower.select),),
    "bitcast": (Instruction(lower.bitcast),),
    "splat": (Instruction(lower.splat),),
    "shuffle": (Instruction(lower.shuffle),),
    "extract": (Instruction(lower.extract),),
    "reduce_add": (Instruction(lower.reduction),),
    "reduce_max": (Instruction(lower.reduction),),
    "convert": (
        Instruction(lower_convert.convert_half_native, frozenset({"f16c"}), lower_convert.is_half_conversion),
        Instruction(lower_convert.convert_half_native, _NEON, lower_convert.is_half_conversion),
        Instruction(lower_convert.convert),
    ),
    # 64 products and 16 sums in one instruction; AVX-VNNI has the 32-product form
    "dot4": (
        Instruction(lower_dot4.dot4_vnni512, frozenset({"avx512vnni"}), lambda op: _lanes(op) % 16 == 0),
        Instruction(lower_dot4.dot4_vnni256, frozenset({"avx512vnni", "avx512vl"}), lambda op: _lanes(op) % 8 == 0),
        Instruction(lower_dot4.dot4_avxvnni, frozenset({"avxvnni"}), lambda op: _lanes(op) % 8 == 0),
        # maddubs adds two products in 16 bits
        Instruction(
            lower_dot4.dot4_maddubs, frozenset({"avx2"}), lambda op: _lanes(op) % 8 == 0 and _pairs_fit_16_bits(op)
        ),
        Instruction(lower_dot4.dot4_madd, frozenset({"avx2"}), lambda op: _lanes(op) % 8 == 0),
        # ARM: 16 products and 4 sums; usdot takes our operands as they are, sdot and smull want both signed
        Instruction(lower_dot4_arm.dot4_usdot, frozenset({"i8mm"}), lambda op: _lanes(op) % 4 == 0),
        Instruction(lower_dot4_arm.dot4_sdot, _DOTPROD, lambda op: _lanes(op) % 4 == 0 and _is_signed_byte(op)),
        Instruction(lower_dot4_arm.dot4_sdot_minus_128, _DOTPROD, lambda op: _lanes(op) % 4 == 0),
        Instruction(lower_dot4_arm.dot4_smull, _NEON, lambda op: _lanes(op) % 4 == 0 and _is_signed_byte(op)),
        Instruction(lower_dot4_arm.dot4_smull_minus_128, _NEON, lambda op: _lanes(op) % 4 == 0),
        Instruction(lower_dot4.dot4_plain),
    ),
    # ARM: 32 products and 4 sums.  Elsewhere only tests run it: kernels take dot4
    "dot2x2": (
        Instruction(lower_dot4_arm.dot2x2_usmmla, frozenset({"i8mm"})),
        Instruction(lower_dot4.dot2x2_plain),
    ),
    "lookup": (
        Instruction(lower_lookup.lookup_pshufb512, _X86_512, lambda op: _entries(op) == 16 and _lanes(op) % 64 == 0),
        Instruction(lower_lookup.lookup_pshufb256, _X86_256, lambda op: _entries(op) == 16 and _lanes(op) % 32 == 0),
        Instruction(lower_lookup.lookup_tbl, _NEON, lambda op: _entries(op) == 16 and _lanes(op) % 16 == 0),
        Instruction(lower_lookup.lookup_plain, applies=lambda op: _entries(op) == 16),
        # tables of 128 bytes
        Instruction(lower_lookup.lookup_vpermi2b, frozenset({"avx512vbmi"}), lambda op: _lanes(op) % 64 == 0),
        Instruction(lower_lookup.lookup_eight_pshufb, frozenset({"avx2"}), lambda op: _lanes(op) % 32 == 0),
        Instruction(lower_lookup.lookup_two_tbl4, _NEON, lambda op: _lanes(op) % 16 == 0),
        Instruction(lower_lookup.lookup_memory),
    ),
}


def _sum_rows(dot4: Instruction) -> Iterator[Instruction]:
    """Rows of dot4_sum that do as a row of dot4 does: all pairs in 16 bits, else one after the other."""
    if dot4.emit in _ADDING_IN_16_BITS:
        yield Instruction(dot4.emit, dot4.needs, lambda op: dot4.applies(op) and _sums_fit_16_bits(op))
    yield Instruction(lower_dot4.one_by_one(dot4.emit), dot4.needs, dot4.applies)


INSTRUCTIONS["dot4_sum"] = tuple(row for dot4 in INSTRUCTIONS["dot4"] for row in _sum_rows(dot4))


def _lanes(op: Op) -> int:
    assert op.result is not None
    return op.result.type.lanes


def _entries(op: Op) -> int:
    """Of the table of a lookup."""
    return op.operands[0].type.lanes


def _pairs_fit_16_bits(op: Op) -> bool:
    """Two products, of each pair for itself."""
    return int(2 * op.attributes["bound"] * op.attributes["signed_bound"]) < 2**15


def _sums_fit_16_bits(op: Op) -> bool:
    """Two products of every pair, added up."""
    num_pairs = len(op.operands) // 2
    return int(num_pairs * 2 * op.attributes["bound"] * op.attributes["signed_bound"]) < 2**15


def _is_signed_byte(op: Op) -> bool:
    return int(op.attributes["bound"]) < 2**7


def best(op: Op, features: frozenset[str]) -> Instruction:
    """The best row for this operation on a CPU with these features."""
    return next(row for row in INSTRUCTIONS[op.name] if row.needs <= features and row.applies(op))
