"""Recommendations by hand: time follows bytes for one user, and may not for a batch."""

import pytest

from lutra.errors import RequestError
from lutra.quantize.allocate import Table
from lutra.quantize.recommend import explain, per_byte, reason, recommend

ONE: Table = {"a": {"2": (20, 1.0, 2.0), "4": (40, 0.1, 4.0)}, "b": {"2": (20, 0.2, 2.0), "4": (40, 0.1, 4.1)}}
# 3 bits are odd: as good as 4, smaller, and slow where arithmetic decides
BATCH: Table = {
    "a": {"3": (30, 0.100, 9.0), "4": (40, 0.099, 4.0)},
    "b": {"3": (30, 0.100, 9.0), "4": (40, 0.104, 4.0)},
}


def test_time_follows_bytes() -> None:
    assert per_byte(ONE) == pytest.approx({"2": 0.1, "4": 8.1 / 80})
    assert reason(ONE, 1).startswith("a step of 1 row takes as long as its bytes")
    found = recommend("one user", 1, ONE, 60)
    assert found.allocation == {"a": "4", "b": "2"} and found.total == found.best == pytest.approx((60, 0.3, 6))
    said = explain(found, ONE, 120)
    assert "4.00 bits per weight, error 0.3000" in said
    assert "(166667 tok/s if they were all)" in said and "4 x 1, 2 x 1" in said


def test_a_batch_gives_a_little_error_for_speed() -> None:
    found = recommend("batched", 16, BATCH, 80)
    assert found.best == pytest.approx((70, 0.199, 13)) and found.allocation == {"a": "4", "b": "4"}
    said = explain(found, BATCH, 160)
    assert "62 % faster than the least error, 0.1990" in said
    assert "a byte of 3 takes 3.0 times as long as one of 4" in said


def test_what_is_much_worse_is_not_taken_for_speed() -> None:
    table: Table = {"a": {"slow": (10, 0.1, 9.0), "fast": (10, 0.2, 1.0)}}
    assert recommend("batched", 16, table, 10).allocation == {"a": "slow"}


def test_a_budget_that_nothing_fits() -> None:
    with pytest.raises(RequestError, match="expected a budget of at least 40"):
        recommend("one user", 1, ONE, 39)
