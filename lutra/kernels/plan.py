"""How wide a step of a matmul kernel is on each instruction set, as one visible table.

A plan changes speed only: every plan gives the same bits.  tuned.py may know a better one for this computer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lutra.compiler import targets


@dataclass(frozen=True)
class Plan:
    """Shape of one step of a matmul kernel.

    tiles           row tiles in registers at once: 1 or 2 (a pair is done in two passes, or in one)
    accumulators    partial int32 sums per row tile and activation row: hides the latency of the dot product
    unroll          chunks of 32 weights per turn of the inner loop
    prefetch_bytes  how far ahead of the codes to ask for cache lines; 0 = leave it to the hardware
    second_bytes    the same for the second cache, which waits for more lines at once than the first; 0 = not at all
    in_place        mask codes where they stand in a word and shift their sums, where a code is one field; else shift
                    codes, then mask them
    squares         take rows of activations two by two (squares.py); accumulators and in_place then mean nothing
    lanes           weight rows of a tile at once: 16, or 8 where even the sums of one tile fill the registers
    """

    tiles: int
    accumulators: int
    unroll: int
    prefetch_bytes: int
    second_bytes: int = 0
    in_place: bool = False
    squares: bool = False
    lanes: int = 16

    @property
    def ahead(self) -> list[tuple[int, int]]:
        """(cache, bytes) to ask for, the far one first."""
        return [(level, size) for level, size in ((2, self.second_bytes), (1, self.prefetch_bytes)) if size]


# A Xeon of 2022 reads 15 GB/s on one thread into its second cache and 10 into the first, which waits for 16 lines at
# most; so lines come in two steps, the far one in the next page.  Without the near one decode loses a tenth again
AHEAD = 8192  # bytes of codes: about 200 ns at 40 GB/s, the latency of memory
NEAR, FAR = 1024, 4096

# (order, isa, tile_m) → plan.  16 sums in flight hide five cycles of two dot products each; 32 registers hold them.
# In place, 2 bits take 8 vector instructions for 64 bytes instead of 11, and 1 bit 16 instead of 23; the sums of more
# than one row would fill the registers
PLANS: dict[tuple[str, str, int], Plan] = {
    ("mad", "avx512", 1): Plan(2, accumulators=4, unroll=1, prefetch_bytes=NEAR, second_bytes=FAR, in_place=True),
    ("mad", "avx512", 2): Plan(2, accumulators=2, unroll=1, prefetch_bytes=NEAR, second_bytes=FAR),
    ("mad", "avx512", 4): Plan(2, accumulators=2, unroll=1, prefetch_bytes=NEAR, second_bytes=FAR),
    ("mad", "avx512", 3): Plan(2, accumulators=2, unroll=1, prefetch_bytes=NEAR, second_bytes=FAR),
    **{
        ("mad", "avx512", rows): Plan(2, accumulators=1, unroll=1, prefetch_bytes=NEAR, second_bytes=FAR)
        for rows in range(5, 14)
    },
    ("dense", "avx512", 4): Plan(tiles=2, accumulators=1, unroll=1, prefetch_bytes=NEAR, second_bytes=FAR),
    ("mad", "portable", 1): Plan(tiles=1, accumulators=1, unroll=1, prefetch_bytes=AHEAD),  # short code compiles fast
    # trit5: tiles of 128 rows where one row of activations looks sums up (matmul_trit.py), else quarters of 64 rows,
    # with fields summed apart in accumulators (matmul_trit_rows.py)
    ("trit5", "avx512", 1): Plan(tiles=2, accumulators=1, unroll=1, prefetch_bytes=NEAR, second_bytes=FAR),
    ("trit5", "avx512", 2): Plan(tiles=4, accumulators=2, unroll=1, prefetch_bytes=0, second_bytes=FAR),
    ("trit5", "avx512", 4): Plan(tiles=4, accumulators=1, unroll=1, prefetch_bytes=0, second_bytes=FAR),
    ("trit5", "avx512", 8): Plan(tiles=2, accumulators=1, unroll=1, prefetch_bytes=0, second_bytes=FAR),
    ("trit5", "avx512", 16): Plan(tiles=1, accumulators=1, unroll=1, prefetch_bytes=0, second_bytes=FAR),
    # 128-bit registers, four to a vector: partial sums of one row tile or of two, not both, or registers spill
    ("mad", "i8mm", 1): Plan(tiles=2, accumulators=1, unroll=1, prefetch_bytes=AHEAD),
    # of more rows the sums are 8 registers, 16 and 16
    ("mad", "i8mm", 2): Plan(tiles=1, accumulators=1, unroll=1, prefetch_bytes=AHEAD, squares=True),
    ("mad", "i8mm", 4): Plan(tiles=1, accumulators=1, unroll=1, prefetch_bytes=AHEAD, squares=True),
    ("mad", "i8mm", 8): Plan(tiles=1, accumulators=1, unroll=1, prefetch_bytes=AHEAD, squares=True, lanes=8),
    ("mad", "dotprod", 1): Plan(tiles=2, accumulators=1, unroll=1, prefetch_bytes=AHEAD),
    ("mad", "neon", 1): Plan(tiles=1, accumulators=2, unroll=1, prefetch_bytes=AHEAD),
}
# Elsewhere: 16 registers, or two or four of them to a vector of the language.  One row is bound by memory and must read
# straight through, so it takes both tiles; more rows are bound by registers
USUAL: dict[tuple[str, int], Plan] = {
    ("mad", 1): Plan(tiles=2, accumulators=2, unroll=1, prefetch_bytes=NEAR, second_bytes=FAR),
    ("trit5", 1): Plan(tiles=2, accumulators=1, unroll=1, prefetch_bytes=NEAR, second_bytes=FAR),
    ("dense", 1): Plan(tiles=2, accumulators=1, unroll=1, prefetch_bytes=NEAR, second_bytes=FAR),
    ("dense", 2): Plan(tiles=2, accumulators=1, unroll=1, prefetch_bytes=NEAR, second_bytes=FAR),
}
OTHERWISE = Plan(tiles=1, accumulators=1, unroll=1, prefetch_bytes=AHEAD)


def plan_for(order: str, isa: str, tile_m: int) -> Plan:
    """The plan of a kernel family for `tile_m` rows of activations at once."""
    return PLANS.get((order, targets.named(isa).vectors, tile_m)) or USUAL.get((order, tile_m), OTHERWISE)


# Rows of one tile of activations, then of two.  A batch of 5 already is faster so than by vectors; a size of its own
# for every number of rows would be a kernel to compile for each
TILE_BLOCKS: dict[str, tuple[int, ...]] = dict.fromkeys(("mad", "trit5"), (8, 10, 12, 14, 16, 20, 24, 28, 32))

# What a search tries: (tiles, accumulators, unroll, in_place), and distances of prefetching into the first and second
# cache.  Families without a row have no plan
SHAPES: dict[str, tuple[tuple[int, int, int, bool], ...]] = {
    "mad": (
        (1, 1, 1, False), (1, 2, 1, False), (1, 4, 1, False), (2, 1, 1, False), (2, 2, 1, False), (2, 4, 1, False),
        (2, 2, 2, False), (1, 4, 1, True), (2, 4, 1, True),
    ),
    "dense": ((1, 1, 1, False), (2, 1, 1, False)),
}  # fmt: skip
DISTANCES = ((0, 0), (4096, 0), (AHEAD, 0), (NEAR, FAR), (NEAR, 2 * FAR), (0, FAR))


def tile_blocks(order: str, isa: str) -> tuple[int, ...]:
    """The row blocks of a family that tile registers multiply (matmul_tiles.py), which has no plan."""
    return TILE_BLOCKS.get(order, ()) if targets.named(isa).has_tiles else ()


def shapes(order: str, isa: str, tile_m: int) -> list[Plan]:
    """The table's plan, then every other shape with its prefetching; empty where a kernel has no plan."""
    if order not in SHAPES or tile_m in tile_blocks(order, isa):
        return []
    usual = plan_for(order, isa, tile_m)
    whole = replace(usual, squares=False, lanes=16)
    others = [replace(whole, tiles=t, accumulators=a, unroll=u, in_place=p) for t, a, u, p in SHAPES[order]]
    return list(dict.fromkeys([usual, *others]))


def distances(plan: Plan) -> list[Plan]:
    """A plan, then the same with every other distance of prefetching."""
    others = [replace(plan, prefetch_bytes=first, second_bytes=second) for first, second in DISTANCES]
    return list(dict.fromkeys([plan, *others]))


def candidates(order: str, isa: str, tile_m: int) -> list[Plan]:
    """Every plan that a search may end with."""
    return [plan for shape in shapes(order, isa, tile_m) for plan in distances(shape)]
