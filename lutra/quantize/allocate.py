"""Which tensor gets which format: a knapsack with one choice per tensor, solved exactly.

A table says what every choice costs:  {tensor: {format: (bytes, error, time_us)}}.  Errors add up over tensors; so they
do for the loss of a model to first order (HAWQ-V2, arXiv 1911.03852, section 2), as long as no tensor ruins it alone.

Tensors are taken one after the other, and of all partial choices only those are kept that no other beats in both cost
and error: whatever the later tensors get, a beaten one can be replaced by the one that beats it.  What is left after
the last tensor is the whole Pareto front, so a budget of bytes and a limit of error are two ways of reading it.
Where more than `max_points` choices are unbeaten, costs are taken together in equal buckets, and `Front.slack` says how
much cost that may have lost: the answer for a budget is at least as good as the best one for `budget - slack`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lutra.errors import RequestError

Option = tuple[float, float, float]  # bytes, error, time_us
Table = Mapping[str, Mapping[str, Option]]
Allocation = dict[str, str]  # tensor → format

COSTS = {"bytes": 0, "time_us": 2}  # what may stand on the front's other axis → its place in an option
ERROR = 1
MAX_POINTS = 1 << 14


@dataclass(frozen=True, eq=False)
class Front:
    """Allocations that no other beats in both cost and error.

    costs     float64 [P]   ascending
    errors    float64 [P]   strictly descending
    slack     cost that bucketing may have lost; 0: exact
    stages    per tensor, for every point kept: the point it came from, and the option taken
    """

    table: Table
    costs: np.ndarray
    errors: np.ndarray
    slack: float
    stages: tuple[tuple[np.ndarray, np.ndarray], ...]

    def allocation(self, point: int) -> Allocation:
        """The formats that make up a point."""
        found: Allocation = {}
        steps = list(zip(self.table.items(), self.stages, strict=True))
        for (tensor, options), (origin, taken) in reversed(steps):
            found[tensor] = list(options)[taken[point]]
            point = int(origin[point])
        return {tensor: found[tensor] for tensor in self.table}

    def within(self, cost: float) -> int:
        """The point of least error that costs at most `cost`; RequestError where even the cheapest costs more."""
        point = int(np.searchsorted(self.costs, cost, side="right")) - 1
        if point < 0:
            raise RequestError(
                f"expected a budget of at least {self.costs[0]:.0f}, which the smallest formats take, got {cost:.0f}; "
                "allow more, or smaller formats"
            )
        return point

    def reaching(self, error: float) -> int:
        """The cheapest point whose error is at most `error`.  Raises RequestError where even the best has more."""
        enough = np.flatnonzero(self.errors <= error)
        if not len(enough):
            raise RequestError(
                f"expected a limit of at least {self.errors[-1]:.4g}, the error of the best formats, got {error:.4g}; "
                "allow more, or better formats"
            )
        return int(enough[0])


def front(table: Table, cost: str = "bytes", limit: float = np.inf, max_points: int = MAX_POINTS) -> Front:
    """Find every allocation worth having.

    cost        the axis beside the error, of COSTS
    limit       of no interest: allocations that cost more (the cheapest one is always kept)
    max_points  kept at a time; more takes longer and buckets less
    Raises RequestError for a table without tensors, a tensor without formats, and numbers that are not finite.
    """
    check(table)
    axis = COSTS[cost]
    rest = sum(min(option[axis] for option in options.values()) for options in table.values())
    costs, errors, slack = np.zeros(1), np.zeros(1), 0.0
    stages = []
    for options in table.values():
        rows = np.array(list(options.values()), np.float64)  # [F, 3]
        rest -= rows[:, axis].min()
        costs, errors, index = _unbeaten(costs[:, None] + rows[:, axis], errors[:, None] + rows[:, ERROR])
        kept = costs + rest <= limit
        kept[0] = True
        costs, errors, index = costs[kept], errors[kept], index[kept]
        if len(costs) > max_points:
            chosen, width = _buckets(costs, max_points)
            costs, errors, index, slack = costs[chosen], errors[chosen], index[chosen], slack + width
        stages.append((index // len(rows), index % len(rows)))
    return Front(table, costs, errors, slack, tuple(stages))


def check(table: Table) -> None:
    """Refuse what is no table; raises RequestError."""
    if not table or not all(table.values()):
        raise RequestError("expected a table of tensors with formats, got an empty one; name formats to choose from")
    if not np.isfinite([option for options in table.values() for option in options.values()]).all():
        raise RequestError("expected finite bytes, errors and times, got inf or nan; leave such formats out")


def _unbeaten(costs: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return costs ascending, errors strictly descending, and where each stood among all [points x options]."""
    costs, errors = costs.ravel(), errors.ravel()
    order = np.lexsort((errors, costs))
    errors = errors[order]
    best = np.minimum.accumulate(errors)
    kept = np.concatenate([[True], errors[1:] < best[:-1]])
    return costs[order][kept], errors[kept], order[kept]


def _buckets(costs: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """The first point, and the last (of least error) in each of `count - 1` buckets; and a bucket's width."""
    width = float(costs[-1] - costs[0]) / (count - 1)
    bucket = np.minimum((costs - costs[0]) // width, count - 2)
    return np.unique(np.append(0, np.append(np.flatnonzero(np.diff(bucket)), len(costs) - 1))), width


def totals(table: Table, allocation: Mapping[str, str]) -> Option:
    """Bytes, error and time of an allocation."""
    options = [table[tensor][format] for tensor, format in allocation.items()]
    num_bytes, error, time_us = (float(sum(column)) for column in zip(*options, strict=True))
    return num_bytes, error, time_us


def allocate(
    table: Table,
    num_bytes: float | None = None,
    bpw: float | None = None,
    max_error: float | None = None,
    num_weights: int | None = None,
) -> Allocation:
    """Give every tensor a format, under exactly one of three conditions.

    num_bytes   least error in at most so many bytes
    bpw         the same as bits per weight of all tensors together; needs num_weights
    max_error   fewest bytes with at most this error
    Raises RequestError where no allocation fits, and for no condition or several.
    """
    if bpw is not None and num_weights is None:
        raise RequestError("expected num_weights with a budget in bits per weight, got none; give both")
    given = [value is not None for value in (num_bytes, bpw, max_error)]
    if sum(given) != 1:
        raise RequestError(f"expected one of a budget, bits per weight or a limit of error, got {sum(given)}; give one")
    if max_error is not None:
        found = front(table)
        return found.allocation(found.reaching(max_error))
    limit = num_bytes if num_bytes is not None else bpw * num_weights / 8  # type: ignore[operator]
    found = front(table, limit=limit)
    return found.allocation(found.within(limit))
