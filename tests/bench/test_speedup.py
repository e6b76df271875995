"""Ratios divide the seconds of the same rounds; crossings are the fewest rows from which one kernel stays ahead."""

from collections.abc import Sequence

from lutra.bench import speedup
from lutra.bench.case import Case, Model
from lutra.bench.curve import STEPS, Point, dips
from lutra.bench.speedup import Line, Pair, crossings, first_lead, speedups

ROWS = (1, 4)


def pair(order: str, rows: int, few_s: Sequence[float], wide_s: Sequence[float]) -> Pair:
    few = Point(Case(Model("tiny", "ternary", order=order), 8, 1, 2), order, rows, 100, 1000, few_s)
    return Pair(few, Point(Case(Model("tiny", "f16"), 8, 1, 2), "dense", rows, 800, 1000, wide_s))


def test_a_line_by_hand() -> None:
    found = pair("mad", 4, [1.0, 2.0, 4.0], [6.0, 8.0, 9.0])
    assert found.bytes_ratio == 8 and (found.ratio.median, found.ratio.best) == (4, 6)
    tokens = f"{4 * STEPS / 8:.1f}"  # the median round of 16 bits took 8 seconds
    assert Line([found]).cells() == {"threads": "2", "rows": "4", "f16 tok/s": tokens, "ternary mad": "4.00"}
    numbers = Line([found]).numbers()
    assert numbers["ternary mad median"] == 4 and numbers["ternary mad tok_per_s"] == 4 * STEPS / 2


def test_first_lead_by_hand() -> None:
    lookup = {1: 5.0, 2: 4.0, 4: 3.0, 8: 2.0}
    assert first_lead({1: 4.0, 2: 4.5, 4: 2.9, 8: 2.0}, lookup) == 8  # a lead that is lost again does not count
    assert first_lead({1: 6.0, 2: 5.0, 4: 4.0, 8: 3.0}, lookup) == 1
    assert first_lead({1: 6.0, 2: 5.0, 4: 4.0, 8: 1.0}, lookup) is None


def test_crossings_name_every_order_but_mad() -> None:
    mad = [pair("mad", rows, [seconds], [8.0]) for rows, seconds in ((1, 2.0), (4, 1.0))]
    trit5 = [pair("trit5", rows, [seconds], [8.0]) for rows, seconds in ((1, 1.0), (4, 2.0))]
    assert crossings([mad, trit5]) == {"ternary trit5": 4}
    assert crossings([trit5]) == {} and speedup.lines([mad, trit5])[1].pairs == (mad[1], trit5[1])


def test_dips_by_hand() -> None:
    """Rows per second 1, 4, 3, 8: three rows in a second are three quarters of the four before."""
    seconds = {1: 1.0, 4: 1.0, 6: 2.0, 8: 1.0}
    points = [pair("mad", rows, [taken], [1.0]).few for rows, taken in seconds.items()]
    assert dips(points) == [(6, 0.75)] and dips(points[:2]) == dips([]) == []


def test_models_are_timed_beside_16_bits() -> None:
    said: list[str] = []
    models = [Model("tiny", "ternary"), Model("tiny", "planes4-g32")]
    found = speedups(models, Model("tiny", "f16"), 1, ROWS, rounds=2, say=said.append)
    assert [[pair.few.rows for pair in pairs] for pairs in found] == [list(ROWS)] * 2
    assert all(len(p.few.seconds) == len(p.wide.seconds) == 2 and p.ratio.median > 0 for pairs in found for p in pairs)
    assert [pair.name for pair in found[1]] == ["planes4-g32 mad"] * 2 and any("planes4-g32" in line for line in said)
