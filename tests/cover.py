"""Fewer cases than all of them: those in which everything that matters still appears."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from itertools import combinations, product
from typing import TypeVar

from lutra.formats.format import AXES, Format

Case = TypeVar("Case")


def cover(cases: Iterable[Case], features: Callable[[Case], Iterable[Hashable]]) -> list[Case]:
    """Cases that together have every feature of all cases, taken greedily; always the same ones."""
    left = [(case, frozenset(features(case))) for case in cases]
    missing, chosen = frozenset().union(*(found for _, found in left)), []
    while missing:
        case, found = max(left, key=lambda each: len(each[1] & missing))
        chosen.append(case)
        missing -= found
    return chosen


def pairs(*axes: Iterable[Hashable]) -> list[tuple]:
    """Rows with a value of each axis, in which any two values of different axes meet."""
    return cover(product(*axes), lambda row: combinations(enumerate(row), 2))


def axes_of(form: Format) -> set[tuple]:
    """The value of each axis of a format, and whether it has a zero."""
    return {("zero", form.zero > 0)} | {(axis, getattr(form, axis)) for axis in AXES}
