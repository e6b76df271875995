"""Chosen cases leave nothing out."""

from itertools import combinations, product

from tests.cover import cover, pairs


def test_a_case_that_adds_nothing_is_left_out():
    """'ab' comes first, 'cd' adds two, 'e' one; 'bc' has nothing left to add."""
    assert cover(["ab", "bc", "e", "cd"], set) == ["ab", "cd", "e"]
    assert cover([], set) == []


def test_any_two_values_meet():
    axes = "abcde", (1, 2, 3, 4), (False, True), ("x", "y", "z")
    rows = pairs(*axes)
    for (i, first), (j, second) in combinations(enumerate(axes), 2):
        assert {(row[i], row[j]) for row in rows} == set(product(first, second))
    assert len(rows) <= 24 < len(list(product(*axes))) == 120 and rows == pairs(*axes)
