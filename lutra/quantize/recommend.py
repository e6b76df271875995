"""Which allocation to take for a deployment, and why, in words.

One user reads every weight once per token, so time follows bytes; a batch multiplies many rows by a weight that is read
once, so time follows arithmetic.  Tables of both (model/sensitivity.py) say which it is on this computer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lutra.quantize.allocate import ERROR, Allocation, Option, Table, front, totals

TOLERANCE = 1.05  # times the least error in the budget: what may be given for speed
TRADES = np.geomspace(0.01, 100, 9)  # weights of time beside the error, in units of both totals
EVEN = 1.15  # dearest beside cheapest microsecond per byte, below which time follows bytes


@dataclass(frozen=True)
class Recommendation:
    """For a deployment: the formats, their totals, and the totals of the least error in the same budget."""

    deployment: str
    rows: int
    allocation: Allocation
    total: Option
    best: Option


def recommend(deployment: str, rows: int, table: Table, num_bytes: float) -> Recommendation:
    """The fastest allocation within a budget whose error is near the least there is.

    rows     that a step of this deployment has, for which the table's times are
    Raises RequestError for a budget that nothing fits.
    """
    found = front(table, limit=num_bytes)
    exact = found.allocation(found.within(num_bytes))
    best = totals(table, exact)
    candidates = [exact]
    for weight in TRADES:
        factor = weight * best[ERROR] / best[2] if best[2] else 0.0
        traded = {
            tensor: {name: (size, error + factor * time, time) for name, (size, error, time) in options.items()}
            for tensor, options in table.items()
        }
        points = front(traded, limit=num_bytes)
        candidates.append(points.allocation(points.within(num_bytes)))
    near = [each for each in candidates if totals(table, each)[ERROR] <= TOLERANCE * best[ERROR]]
    chosen = min(near, key=lambda each: totals(table, each)[2])
    return Recommendation(deployment, rows, chosen, totals(table, chosen), best)


def explain(found: Recommendation, table: Table, num_weights: int) -> str:
    """The recommendation and its reason, in three lines."""
    size, error, time_us = found.total
    bpw, rate = 8 * size / num_weights, found.rows * 1e6 / time_us if time_us else 0.0
    counts = Counter(found.allocation.values()).most_common()
    given = found.best[2] / time_us - 1 if time_us else 0.0
    faster = f", {100 * given:.0f} % faster than the least error, {found.best[ERROR]:.4f}" if given > 0.005 else ""
    return "\n".join(
        [
            f"{found.deployment}: {size / 1e6:.2f} MB, {bpw:.2f} bits per weight, error {error:.4f}, "
            f"linears measured at {time_us / 1e3:.2f} ms a step ({rate:.0f} tok/s if they were all){faster}",
            "  " + ", ".join(f"{name} x {count}" for name, count in counts),
            "  " + reason(table, found.rows),
        ]
    )


def reason(table: Table, rows: int) -> str:
    """Whether time follows bytes on this computer, by the table's own numbers."""
    cost = per_byte(table)
    cheapest, dearest = min(cost, key=lambda name: cost[name]), max(cost, key=lambda name: cost[name])
    ratio = cost[dearest] / cost[cheapest] if cost[cheapest] else 1.0
    step = f"a step of {rows} row{'s' if rows > 1 else ''}"
    if ratio < EVEN:
        return f"{step} takes as long as its bytes take to read, whatever the format: fewer bits are faster"
    return (
        f"{step} is held up by arithmetic: a byte of {dearest} takes {ratio:.1f} times as long as one of {cheapest}, "
        "so fewer bits are not always faster"
    )


def per_byte(table: Table) -> Mapping[str, float]:
    """Format → microseconds per byte, over all tensors that may have it."""
    sums: dict[str, list[float]] = {}
    for options in table.values():
        for name, (size, _, time_us) in options.items():
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += size
            total[1] += time_us
    return {name: time_us / size if size else 0.0 for name, (size, time_us) in sums.items()}
