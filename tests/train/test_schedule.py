"""The schedule: budgets end at whichever comes first, rates warm up and reach zero."""

from datetime import datetime, timedelta, timezone

import pytest

from lutra.errors import RequestError
from lutra.train.schedule import Budget, Schedule, parse_until


def test_budget_takes_whichever_comes_first() -> None:
    soon = datetime.now(timezone.utc) + timedelta(seconds=100)
    assert Budget(steps=10).progress(5, 0) == 0.5
    assert Budget(minutes=2).progress(0, 30) == 0.25
    assert Budget(minutes=2, until=soon).progress(0, 100) == pytest.approx(100 / 120, abs=0.01)
    assert Budget(minutes=60, until=soon).progress(0, 100) == pytest.approx(0.5, abs=0.01)
    assert Budget(minutes=60, until=soon - timedelta(hours=1)).progress(0, 100) == 1


def test_learning_rate_warms_up_and_reaches_zero() -> None:
    schedule = Schedule(warmup_steps=2)
    assert schedule.learning_rate(0, 0.0) == schedule.peak_rate / 2
    assert schedule.learning_rate(5, 0.0) == schedule.peak_rate
    assert schedule.learning_rate(5, 1.0) == 0


def test_until_is_a_time_to_come() -> None:
    now = datetime.now(timezone.utc)
    assert timedelta(0) < parse_until(f"{now:%H:%M}") - now <= timedelta(days=1)
    with pytest.raises(RequestError, match="HH:MM"):
        parse_until("half past eight")


def test_the_mixture_moves_from_first_to_last() -> None:
    assert [Schedule(story_share=(0.2, 0.6)).stories(p) for p in (0, 0.5, 1)] == pytest.approx([0.2, 0.4, 0.6])
