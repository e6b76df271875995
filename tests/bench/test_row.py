"""What a row says of given times, counted by hand."""

import pytest

from lutra.bench.case import Case, Model
from lutra.bench.row import Rate, Ratio, Row

SECONDS = {
    "prefill": [2.0, 4.0, 1.0], "multiply": [1.0, 1.0, 0.5], "decode": [1.0, 2.0, 4.0], "read": [0.5, 1.0, 2.0],
}  # fmt: skip
CASE = Case(Model("tiny", "ternary"), prompt=64, gen=8, threads=2)
ROW = Row(CASE, "mad", 900_000_000, 100_000_000, 4_000_000_000, SECONDS)


def test_rates_of_three_rounds() -> None:
    """64 tokens in 2, 4, 1 s are 32, 16, 64 a second; half of them lie between 24 and 48."""
    assert Rate.of(64, [2.0, 4.0, 1.0]) == Rate(median=32, spread=12, best=64)
    assert str(Rate.of(64, [2.0, 4.0, 1.0])) == "32.0 ±12.0 (64.0)"
    assert str(Rate(1234.5, 10, 2345.6)) == "1234 ±10 (2346)"


def test_one_round_has_no_spread() -> None:
    assert Rate.of(10, [2.0]) == Rate(5, 0, 5)


def test_a_ratio_divides_medians_and_bests() -> None:
    """Ours took 2 s in the median and 1 s at best, the others 6 s and 4 s."""
    ratio = Ratio.of([2.0, 1.0, 3.0], [4.0, 6.0, 9.0])
    assert ratio == Ratio(median=3.0, best=4.0)
    assert (ratio.times(), ratio.percent()) == ("3.00 (4.00)", "300 (400)")


def test_a_row_by_hand() -> None:
    """Decode: 8 tokens of 1e9 bytes in 2 s in the median, where reading as much took 1 s: 4 GB/s of 8, 50 %."""
    assert ROW.bytes_per_token == 1_000_000_000
    assert (ROW.decode.median, ROW.decode.best) == (4, 8)
    assert (ROW.gb_per_s.median, ROW.roof_gb_per_s.median) == (4, 8)
    assert ROW.shares["decode"] == Ratio(0.5, 0.5)
    assert (ROW.prefill.median, ROW.gops.median, ROW.peak_gops.median) == (32, 2, 4)
    assert ROW.shares["prefill"] == Ratio(0.5, 0.5)
    assert ROW.rivals == {}


def test_cells_are_what_the_table_shows() -> None:
    assert ROW.cells() == {
        "shape": "tiny", "format": "ternary", "head": "ternary", "order": "mad", "kv": "f16", "threads": "2",
        "prompt": "64",
        "prefill tok/s": "32.0 ±12.0 (64.0)", "Gop/s": "2.0 ±0.8 (4.0)", "% of int8 peak": "50 (50)",
        "decode tok/s": "4.0 ±1.5 (8.0)", "MB/token": "1000.0", "GB/s": "4.0 ±1.5 (8.0)", "% of read roof": "50 (50)",
    }  # fmt: skip


def test_numbers_are_flat() -> None:
    numbers = ROW.numbers()
    assert numbers["decode_tok_per_s_median"] == 4 and numbers["decode_share_best"] == 0.5
    assert (numbers["shape"], numbers["head"], numbers["order"], numbers["rounds"]) == ("tiny", "ternary", "mad", 3)
    assert all(isinstance(value, (int, float, str)) for value in numbers.values())


def test_a_rival_adds_two_columns() -> None:
    row = Row(CASE, "mad", 1, 0, 1, SECONDS | {"rival_prefill": [4.0] * 3, "rival_decode": [5.0] * 3})
    assert row.cells()["× rival prefill"] == "2.00 (4.00)"
    assert row.cells()["× rival decode"] == "2.50 (5.00)"
    assert row.numbers()["decode_times_rival_median"] == pytest.approx(2.5)
