"""Instructions of the inner loops of the low-bit matmuls for every instruction set, counted in the emitted assembly.

    python bench/instructions_per_weight.py [avx512 i8mm ...]

Nothing runs and no such CPU is needed.  For each family and width of codes, weights with one scale a row:

    1 row     instructions per weight of a decode step
    4 rows    instructions per weight and row of activations, where the kernel takes four rows at once
    most      the same for the most rows that it is used with, and how many
    spills    loads and stores of the stack among those of one turn for 1 row: the compiler ran out of registers
"""

from __future__ import annotations

import sys

from lutra.compiler.assembly import count, innermost_loops
from lutra.compiler.codegen import cross_compile
from lutra.compiler.targets import TARGETS, Target
from lutra.formats import catalog
from lutra.formats.format import Format
from lutra.kernels.choose import row_blocks
from lutra.kernels.matmul_lut import TILE, VECTORS_AT_ONCE, matmul_lut
from lutra.kernels.matmul_mad import matmul_mad
from lutra.kernels.plan import plan_for
from lutra.kernels.tiles import CHUNK

BITS = (1, 2, 3, 4)  # that both families take
# What the loops are for: products of bytes, and lookups
WORK = ("vpdpbusd", "vpmaddubsw", "usdot", "usmmla", "sdot", "smull", "smlal", "vpshufb", "tbl")
FORMATS = {bits: catalog.planes(bits, 0) for bits in BITS} | {8: catalog.int8(0)}


def mad_loop(format: Format, target: Target, tile_m: int) -> tuple[list[str], int]:
    """The inner loop, and the weights a turn of it takes."""
    plan = plan_for("mad", target.isa, tile_m)
    function = matmul_mad.trace(format=format, epilogue="store", has_bias=False, tile_m=tile_m, plan=plan)
    return _loop(function, target), CHUNK * plan.lanes * plan.tiles * plan.unroll


def lut_loop(format: Format, target: Target, tile_m: int) -> tuple[list[str], int]:
    """As mad_loop."""
    vectors = VECTORS_AT_ONCE[target.isa]
    function = matmul_lut.trace(format=format, epilogue="store", has_bias=False, tile_m=tile_m, vectors_at_once=vectors)
    return _loop(function, target), CHUNK * TILE


LOOPS = {"mad": mad_loop, "lut": lut_loop}


def _loop(function, target: Target) -> list[str]:
    """The inner loop that multiplies or looks up most; the code around it may hold longer ones."""
    loops = innermost_loops(cross_compile(function, target, "kernel").assembly)
    return max(loops, key=lambda loop: sum(count(loop).get(name, 0) for name in WORK))


def row(family: str, bits: int, target: Target) -> str:
    most = row_blocks(family, target.isa)[-1]
    rates = " | ".join(f"{rate(family, bits, target, rows):6.3f}" for rows in (1, 4, most))
    one, _ = LOOPS[family](FORMATS[bits], target, 1)
    spills = sum("[sp" in text or "(%rsp" in text for text in one)
    frequent = ", ".join(f"{number} {name}" for name, number in list(count(one).items())[:4])
    return f"| {target.isa:8} | {family} | {bits} | {rates} of {most} | {spills:6} | {frequent} |"


def rate(family: str, bits: int, target: Target, rows: int) -> float:
    """Instructions per weight and row of activations."""
    loop, weights = LOOPS[family](FORMATS[bits], target, rows)
    return len(loop) / weights / rows


def main(isas: list[str]) -> None:
    print(
        "| ISA      | family | bits | 1 row | 4 rows | most      | spills | most frequent |\n"
        "|---|---|--:|--:|--:|--:|--:|---|"
    )
    for target in TARGETS:
        if target.architecture and (not isas or target.isa in isas):
            for family, bits in [("mad", b) for b in FORMATS] + [("lut", b) for b in BITS]:
                print(row(family, bits, target), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
