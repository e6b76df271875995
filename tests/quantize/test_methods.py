"""Every published format has a method that writes it, and every method writes the formats it says it fits."""

from __future__ import annotations

import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.quantize.levels import recode
from lutra.quantize.methods import METHODS, method_for, rtn
from lutra.quantize.quality import sqnr_db

EVERY = [*catalog.FORMATS, *catalog.FLOAT_FORMATS]
PAIRS = [(name, form) for name, row in METHODS.items() for form in EVERY if row.fits(catalog.find(form))]


def weights(n: int = 6, k: int = 200) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, k)).astype(np.float32)


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_a_method_writes_what_it_fits(method: str, name: str) -> None:
    w, form = weights(), catalog.find(name)
    q = METHODS[method].quantise(w, form)
    assert q.format == form and q.shape == (6, 200)
    least = 18 if form.bits >= 5 else 5 if form.num_codes**form.terms > 4 else 1.5
    assert sqnr_db(w, q.dequantize()) > least


@pytest.mark.parametrize("name", EVERY)
def test_every_published_format_has_one(name: str) -> None:
    form = catalog.find(name)
    assert METHODS[method_for(form)].fits(form)
    assert METHODS[method_for(form, "rtn")].fits(form)


def test_levels_from_minus_1_to_2_are_written_as_far_as_they_reach() -> None:
    q = rtn(np.array([[-3, 1, 3]], np.float32), catalog.planes(2, 64, zero=1))
    assert q.codes().tolist() == [[0, 2, 3]] and q.dequantize().tolist() == [[-1.5, 1.5, 3]]


def test_a_wish_is_met_where_it_can_be() -> None:
    free, tied = catalog.planes(1, 64, offset="mins", terms=2), catalog.planes(4, 32)
    assert (method_for(free, "hlq"), method_for(tied, "hlq")) == ("hlq", "clip")
    assert method_for(catalog.ternary(), "absmean") == "absmean"


def test_a_format_nobody_writes_is_refused() -> None:
    with pytest.raises(FormatError, match="expected a format that one of"):
        method_for(catalog.planes(2, 64, terms=3))


@pytest.mark.parametrize("name", ["planes4-g32-mins-u8xf16", "planes3-g64-mins-bf16", "int8-g64-mins"])
def test_rounding_between_the_ends_of_a_group(name: str) -> None:
    """The levels reach both ends up to what storing the scales rounds, and every weight has the nearest."""
    w, form = weights(), catalog.find(name)
    q = rtn(w, form)
    step = (w.max(1) - w.min(1)) / (form.num_codes - 1)
    assert (np.abs(q.dequantize() - w).max(1) < 0.75 * step).all()
    assert np.array_equal(recode(q, w).dequantize(), q.dequantize())
