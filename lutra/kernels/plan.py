"""How wide a step of a matmul kernel is on each instruction set, as one visible table.

A plan changes speed only: every plan gives the same bits.  tuned.py may know a better one for this computer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Plan:
    """Shape of one step of a matmul kernel.

    tiles           row tiles in registers at once: 1 or 2 (a pair is done in two passes, or in one)
    accumulators    partial int32 sums per row tile and activation row: hides the latency of the dot product
    unroll          chunks of 32 weights per turn of the inner loop
    prefetch_bytes  how far ahead of the codes to ask for cache lines; 0 = leave it to the hardware
    """

    tiles: int
    accumulators: int
    unroll: int
    prefetch_bytes: int


AHEAD = 8192  # bytes of codes: about 200 ns at 40 GB/s, the latency of memory; decode on AVX-512 is as fast with half

# (order, isa, tile_m) → plan.  16 sums in flight hide five cycles of two dot products each; 32 registers hold them
PLANS: dict[tuple[str, str, int], Plan] = {
    ("mad", "avx512", 1): Plan(tiles=2, accumulators=4, unroll=1, prefetch_bytes=4096),
    ("mad", "avx512", 2): Plan(tiles=2, accumulators=2, unroll=1, prefetch_bytes=AHEAD),
    ("mad", "avx512", 4): Plan(tiles=2, accumulators=2, unroll=1, prefetch_bytes=AHEAD),
    ("mad", "avx512", 8): Plan(tiles=2, accumulators=1, unroll=1, prefetch_bytes=AHEAD),
    ("dense", "avx512", 4): Plan(tiles=2, accumulators=1, unroll=1, prefetch_bytes=AHEAD),
    ("mad", "portable", 1): Plan(tiles=1, accumulators=1, unroll=1, prefetch_bytes=AHEAD),  # short code compiles fast
    # 128-bit registers, four to a vector: partial sums of one row tile or of two, not both, or registers spill
    ("mad", "i8mm", 1): Plan(tiles=2, accumulators=1, unroll=1, prefetch_bytes=AHEAD),
    ("mad", "dotprod", 1): Plan(tiles=2, accumulators=1, unroll=1, prefetch_bytes=AHEAD),
    ("mad", "neon", 1): Plan(tiles=1, accumulators=2, unroll=1, prefetch_bytes=AHEAD),
}
# Elsewhere: 16 registers, or two or four of them to a vector of the language.  One row is bound by memory and must read
# straight through, so it takes both tiles; more rows are bound by registers
USUAL: dict[tuple[str, int], Plan] = {
    ("mad", 1): Plan(tiles=2, accumulators=2, unroll=1, prefetch_bytes=AHEAD),
    ("dense", 1): Plan(tiles=2, accumulators=1, unroll=1, prefetch_bytes=AHEAD),
    ("dense", 2): Plan(tiles=2, accumulators=1, unroll=1, prefetch_bytes=AHEAD),
}
OTHERWISE = Plan(tiles=1, accumulators=1, unroll=1, prefetch_bytes=AHEAD)


def plan_for(order: str, isa: str, tile_m: int) -> Plan:
    """The plan of a kernel family for `tile_m` rows of activations at once."""
    return PLANS.get((order, isa, tile_m)) or USUAL.get((order, tile_m), OTHERWISE)


# What a search tries: (tiles, accumulators, unroll), and distances of prefetching.  Families without a row have no plan
SHAPES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "mad": ((1, 1, 1), (1, 2, 1), (1, 4, 1), (2, 1, 1), (2, 2, 1), (2, 4, 1), (2, 2, 2)),
    "dense": ((1, 1, 1), (2, 1, 1)),
}
DISTANCES = (0, 4096, AHEAD)


def shapes(order: str, isa: str, tile_m: int) -> list[Plan]:
    """The table's plan, then every other shape with its prefetching; empty for a family without plans."""
    if order not in SHAPES:
        return []
    usual = plan_for(order, isa, tile_m)
    others = [replace(usual, tiles=t, accumulators=a, unroll=u) for t, a, u in SHAPES[order]]
    return list(dict.fromkeys([usual, *others]))


def distances(plan: Plan) -> list[Plan]:
    """A plan, then the same with every other distance of prefetching."""
    return list(dict.fromkeys([plan, *(replace(plan, prefetch_bytes=distance) for distance in DISTANCES)]))


def candidates(order: str, isa: str, tile_m: int) -> list[Plan]:
    """Every plan that a search may end with."""
    return [plan for shape in shapes(order, isa, tile_m) for plan in distances(shape)]
