"""Tables per row: nested codes, exact splits, and no worse than evenly spaced levels."""

import doctest
import itertools

import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.quantize import kmeans
from lutra.quantize.kmeans import row_tables
from lutra.quantize.quality import sqnr_db
from lutra.quantize.rounding import round_to_nearest


def gauss(n: int = 8, k: int = 300) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, k)).astype(np.float32)


def test_docstrings():
    assert doctest.testmod(kmeans).failed == 0


def test_codes_are_nested_and_levels_rise():
    found = row_tables(gauss(), 2, 5)
    assert sorted(found.tables) == [2, 3, 4, 5] and found.codes.max() == 31
    errors = [sqnr_db(gauss(), found.values(bits)) for bits in (2, 3, 4, 5)]
    assert all(better - worse > 3 for worse, better in itertools.pairwise(errors))
    for table in found.tables.values():
        assert (np.diff(table.astype(np.float32), axis=1) >= 0).all()


def test_a_seed_does_not_depend_on_what_follows():
    a, b = row_tables(gauss(), 3), row_tables(gauss(), 3, 6)
    assert np.array_equal(a.tables[3], b.tables[3]) and np.array_equal(a.codes, b.codes >> 3)


def test_levels_are_the_means_of_their_weights():
    w, h = gauss(2, 90), np.random.default_rng(1).uniform(0.1, 2, 90)
    found = row_tables(w, 2, importance=h)
    for row, level in itertools.product(range(2), range(4)):
        mine = found.codes[row] == level
        assert np.isclose(found.tables[2][row, level], np.average(w[row, mine], weights=h[mine]), rtol=1e-3)


def test_the_split_is_the_best_there_is():
    """One bit from zero: every cut of the sorted row is tried by hand."""
    row = np.sort(np.random.default_rng(2).standard_t(3, 40)).astype(np.float32)
    best = min(((row[:cut] - row[:cut].mean()) ** 2).sum() + ((row[cut:] - row[cut:].mean()) ** 2).sum()
               for cut in range(1, 40))  # fmt: skip
    assert ((row_tables(row[None], 1).values() - row) ** 2).sum() <= best * 1.001


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_beats_evenly_spaced_rows(bits):
    w = np.random.default_rng(3).standard_t(5, (16, 1024)).astype(np.float32)
    even = round_to_nearest(w, catalog.planes(bits, 0, offset="mins"))
    assert sqnr_db(w, row_tables(w, bits).values()) > sqnr_db(w, even.dequantize())


def test_values_stay():
    first = row_tables(gauss(), 3).values()
    assert np.array_equal(row_tables(first, 3).values(), first)


def test_few_different_weights():
    w = np.array([[1, 1, 1, 1], [1, 2, 1, 2]], np.float32)
    assert np.array_equal(row_tables(w, 2, 4).values(), w)


def test_errors():
    with pytest.raises(FormatError, match="expected widths with 1 <= seed <= bits <= 8, got 3 and 2"):
        row_tables(gauss(), 3, 2)
    with pytest.raises(FormatError, match="expected a width of 3 bits, got 2"):
        row_tables(gauss(), 3).values(2)
