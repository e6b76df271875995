"""How wide a step of a matmul kernel is on each instruction set, as one visible table.

A plan changes speed only: every plan gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass


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


# (order, isa, tile_m) → plan
PLANS: dict[tuple[str, str, int], Plan] = {
    ("mad", "avx512", 1): Plan(tiles=2, accumulators=4, unroll=1, prefetch_bytes=4096),
    ("mad", "avx512", 2): Plan(tiles=2, accumulators=2, unroll=1, prefetch_bytes=4096),
    ("mad", "avx512", 4): Plan(tiles=2, accumulators=1, unroll=1, prefetch_bytes=4096),
    ("mad", "avx512", 8): Plan(tiles=2, accumulators=1, unroll=1, prefetch_bytes=0),
    ("mad", "avx512", 16): Plan(tiles=1, accumulators=1, unroll=1, prefetch_bytes=0),
    ("dense", "avx512", 1): Plan(tiles=2, accumulators=1, unroll=1, prefetch_bytes=4096),
}
# 16 registers, and two or four of them to a vector of the language
NARROW: dict[tuple[str, int], Plan] = {
    ("mad", 1): Plan(tiles=1, accumulators=2, unroll=1, prefetch_bytes=4096),
    ("mad", 2): Plan(tiles=1, accumulators=1, unroll=1, prefetch_bytes=4096),
    ("mad", 4): Plan(tiles=1, accumulators=1, unroll=1, prefetch_bytes=0),
    ("dense", 1): Plan(tiles=1, accumulators=1, unroll=1, prefetch_bytes=4096),
}
DEFAULT = Plan(tiles=1, accumulators=1, unroll=1, prefetch_bytes=0)


def plan_for(order: str, isa: str, tile_m: int) -> Plan:
    """The plan of a kernel family for `tile_m` rows of activations at once."""
    return PLANS.get((order, isa, tile_m)) or NARROW.get((order, tile_m), DEFAULT)
