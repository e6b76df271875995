"""The kernel language: every word a kernel author may use.

A kernel is a Python function that runs once per specialisation, on symbols.  Python's own `for` and `if` run while
tracing (they unroll and specialise); `loop` and `when` become control flow in the machine code.  The NumPy meaning
of every operation stands in instructions.py; interpret.py executes it.

    @kernel
    def scale(x: Pointer[f32], y: Pointer[f32], task: i64, *, lanes):
        start = task * lanes
        store(y, start, load(x, start, lanes) * 2.0)

The last positional parameter, `task`, numbers the piece of work this call does; pieces are independent and may run
in any order on any thread.  Keyword-only parameters are Python values fixed per specialisation.

Floats: every multiply and every add rounds on its own, but in `fma`; nothing else is fused or reordered, on any CPU.
"""

from __future__ import annotations

from lutra.compiler.control import loop, when
from lutra.compiler.dots import dot2x2, dot4, dot4_sum, lookup
from lutra.compiler.ir import Value
from lutra.compiler.lanes import (
    absolute,
    bitcast,
    concat,
    convert,
    extract,
    fma,
    maximum,
    minimum,
    reduce_add,
    reduce_max,
    round_even,
    select,
    shuffle,
    splat,
    sqrt,
)
from lutra.compiler.memory import load, prefetch, scratch, store
from lutra.compiler.tile_registers import Tile
from lutra.compiler.types import Pointer, bf16, f16, f32, i1, i8, i16, i32, i64, u8, u16, u32
from lutra.compiler.values import Operand, Var, const, var

__all__ = [
    "Operand", "Pointer", "Tile", "Value", "Var", "absolute", "bf16", "bitcast", "concat", "const", "convert", "dot2x2",
    "dot4", "dot4_sum", "extract", "fma", "f16", "f32", "i1", "i16", "i32", "i64", "i8", "load", "lookup", "loop",
    "maximum", "minimum", "prefetch", "reduce_add", "reduce_max", "round_even", "scratch", "select", "shuffle", "splat",
    "sqrt", "store", "u16", "u32", "u8", "var", "when",
]  # fmt: skip
