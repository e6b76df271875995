"""The knapsack by hand, against trying every allocation, and what bucketing may lose."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutra.errors import RequestError
from lutra.quantize.allocate import MAX_POINTS, Table, allocate, front, totals

# two tensors: the first suffers much from 2 bits, the second hardly
HAND: Table = {
    "a": {"2": (20, 1.0, 3.0), "4": (40, 0.1, 5.0)},
    "b": {"2": (10, 0.2, 1.0), "4": (20, 0.1, 4.0)},
}


def test_budgets_by_hand() -> None:
    assert allocate(HAND, num_bytes=30) == {"a": "2", "b": "2"}
    assert allocate(HAND, num_bytes=49) == {"a": "2", "b": "4"}
    assert allocate(HAND, num_bytes=50) == {"a": "4", "b": "2"}
    assert allocate(HAND, num_bytes=60) == {"a": "4", "b": "4"}
    assert allocate(HAND, bpw=4.0, num_weights=100) == {"a": "4", "b": "2"}  # 50 bytes
    assert allocate(HAND, max_error=0.3000001) == {"a": "4", "b": "2"}
    assert totals(HAND, {"a": "4", "b": "2"}) == pytest.approx((50, 0.3, 6))


def test_the_front_by_hand() -> None:
    found = front(HAND)
    assert found.costs.tolist() == [30, 40, 50, 60] and found.slack == 0
    assert found.errors == pytest.approx([1.2, 1.1, 0.3, 0.2])
    fast = front(HAND, cost="time_us")
    assert fast.costs.tolist() == [4, 6, 9] and fast.allocation(1) == {"a": "4", "b": "2"}


numbers = st.integers(0, 20).map(float)
options = st.dictionaries(st.sampled_from("pqrst"), st.tuples(numbers, numbers, numbers), min_size=1, max_size=4)
tables = st.dictionaries(st.sampled_from("abcde"), options, min_size=1, max_size=5)


def every(table: Table) -> list[tuple[float, float, float]]:
    """Totals of every allocation there is."""
    return [totals(table, dict(zip(table, names, strict=True))) for names in itertools.product(*table.values())]


@given(table=tables, budget=numbers)
def test_no_allocation_within_the_budget_is_better(table: Table, budget: float) -> None:
    fitting = [error for cost, error, _ in every(table) if cost <= budget]
    if not fitting:
        with pytest.raises(RequestError, match="expected a budget of at least"):
            allocate(table, num_bytes=budget)
        return
    cost, error, _ = totals(table, allocate(table, num_bytes=budget))
    assert cost <= budget and error == min(fitting)


@given(table=tables, limit=numbers)
def test_no_allocation_of_little_error_is_smaller(table: Table, limit: float) -> None:
    fitting = [cost for cost, error, _ in every(table) if error <= limit]
    if not fitting:
        with pytest.raises(RequestError, match="expected a limit of at least"):
            allocate(table, max_error=limit)
        return
    cost, error, _ = totals(table, allocate(table, max_error=limit))
    assert error <= limit and cost == min(fitting)


@given(table=tables)
def test_the_front_is_the_front(table: Table) -> None:
    found, points = front(table), every(table)
    pairs = set(zip(found.costs.tolist(), found.errors.tolist(), strict=True))
    assert pairs == {
        (c, e) for c, e, _ in points if not any((c2 <= c and e2 < e) or (c2 < c and e2 <= e) for c2, e2, _ in points)
    }
    for index in range(len(found.costs)):
        assert totals(table, found.allocation(index))[:2] == (found.costs[index], found.errors[index])


@given(table=tables, budget=st.integers(0, 60), max_points=st.integers(3, 6))
def test_buckets_lose_no_more_than_they_say(table: Table, budget: int, max_points: int) -> None:
    found, points = front(table, limit=budget, max_points=max_points), every(table)
    cheapest = min(cost for cost, _, _ in points)
    assert len(found.costs) <= max_points and found.costs[0] == cheapest
    if budget >= cheapest:
        point = found.within(budget)
        tighter = [error for cost, error, _ in points if cost <= max(budget - found.slack, cheapest)]
        assert found.costs[point] <= budget and found.errors[point] <= min(tighter)


def test_a_large_model_is_exact_where_sizes_have_a_common_measure() -> None:
    """224 tensors in 6 formats, bytes in multiples of 4096: more than can be tried, fewer sums than points."""
    rng = np.random.default_rng(0)
    table = {
        f"t{i}": {f"f{bits}": (4096.0 * bits, float(weight * 4.0**-bits), 1.0 * bits) for bits in range(1, 7)}
        for i, weight in enumerate(rng.uniform(1, 9, 224))
    }
    found = front(table)
    assert found.slack == 0 and len(found.costs) == 224 * 5 + 1 < MAX_POINTS
    # equal steps and convex errors: greedy, always the step that helps most, is the best there is
    gains = sorted((o[f"f{b}"][1] - o[f"f{b + 1}"][1] for o in table.values() for b in range(1, 6)), reverse=True)
    assert -np.diff(found.errors) == pytest.approx(gains, rel=1e-6)


BROKEN = [
    ({}, {"num_bytes": 1}, "expected a table of tensors"),
    ({"a": {}}, {"num_bytes": 1}, "expected a table of tensors"),
    ({"a": {"f": (1, np.nan, 1)}}, {"num_bytes": 1}, "expected finite"),
    (HAND, {}, "expected one of a budget"),
    (HAND, {"num_bytes": 99, "max_error": 1}, "expected one of a budget"),
    (HAND, {"bpw": 3}, "expected num_weights"),
]


@pytest.mark.parametrize(("table", "conditions", "match"), BROKEN)
def test_what_cannot_be_solved_is_said(table: Table, conditions: dict[str, float], match: str) -> None:
    with pytest.raises(RequestError, match=match):
        allocate(table, **conditions)  # type: ignore[arg-type]
