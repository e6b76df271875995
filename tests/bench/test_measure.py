"""A tiny model measured from end to end: every figure is there; how large it is, no test can say."""

import pytest

from lutra.bench import measure
from lutra.bench.case import Case, Model
from lutra.bench.curve import curve
from lutra.bench.launches import BETWEEN, SUM, WHOLE, launches
from lutra.machine import limits


@pytest.fixture(autouse=True)
def small_roof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_buffer", lambda: measure_buffer)


measure_buffer = limits.np.ones(8 * limits.BLOCK_BYTES, limits.np.uint8)
MODEL = Model("tiny", "ternary")


class SlowRival:
    """Takes ten seconds for anything."""

    def run(self, prompt: int, gen: int, threads: int) -> tuple[float, float]:
        assert (prompt, gen, threads) == (5, 2, 2)
        return 10.0, 10.0


def test_rounds() -> None:
    messages: list[str] = []
    row = measure.measure(Case(MODEL, 5, 2, 2), MODEL.make(8), 3, SlowRival(), messages.append)  # type: ignore[arg-type]
    assert {name: len(times) for name, times in row.seconds.items()} == dict.fromkeys(
        ("prefill", "multiply", "decode", "read", "rival_prefill", "rival_decode"), 3
    )
    assert row.order == "mad" and row.decode.best >= row.decode.median > 0 and row.shares["prefill"].best > 0
    assert messages == ["compiling kernels, first round", "round 1 of 3", "round 2 of 3", "round 3 of 3"]


def test_launches_of_both_steps() -> None:
    """4 layers: in each a quantisation before each of 4 matrices, one rope, one attention; and the head's own."""
    found = {(kind.step, kind.name): kind for kind in launches(Case(MODEL, 5, 1, 1), MODEL.make(8), 1)}
    counts = {name: kind.count for (step, name), kind in found.items() if step == "decode"}
    assert [counts[name] for name in ("qkv", "attention", "o", "gate_up", "down", "head")] == [4, 4, 4, 4, 4, 1]
    assert counts["quantize"] == 17 and counts[SUM] == sum(
        count for name, count in counts.items() if name not in (SUM, BETWEEN, WHOLE)
    )
    assert ("prefill of 5", "head") not in found
    whole = found["decode", WHOLE]
    assert whole.num_bytes == MODEL.make(8).bytes_per_token + 4 * found["decode", "attention"].num_bytes // 4
    assert whole.cells()["% of step"] == "100.0" and found["decode", BETWEEN].cells()["GB/s"] == "-"
    assert whole.us == pytest.approx(found["decode", SUM].us + found["decode", BETWEEN].us)


def test_a_curve_has_a_point_for_each_number_of_rows() -> None:
    points = curve(Case(MODEL, 5, 1, 2), MODEL.make(16), [1, 3, 8], rounds=2)
    assert [point.rows for point in points] == [1, 3, 8]
    assert points[2].operations == 8 * points[0].operations
    assert all(point.tokens.best > 0 and len(point.seconds) == 2 for point in points)
    assert points[1].cells()["rows"] == "3" and points[1].numbers()["rows"] == 3
