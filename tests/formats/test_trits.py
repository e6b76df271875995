"""Five trits in a byte: by hand, every byte there is, and equal to multiplication."""

import itertools

import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.formats import catalog, integer, trits
from lutra.formats.qtensor import QTensor


def test_by_hand():
    """x = 1 2 3 4 5, weights + - 0 + -: 1 - 2 + 4 - 5 = -2; v = 1 - 3 + 27 - 81 = -56."""
    levels = np.array([[1, -1, 0, 1, -1]], np.int8)
    packed = trits.pack_trits(levels)
    assert packed.tolist() == [[56 | 0x80]]
    tables = trits.build_trit_tables(np.array([[1, 2, 3, 4, 5]], np.int8))
    assert tables[0, 0, 56] == 2
    assert trits.trit_dot(tables, packed).tolist() == [[-2]]


def test_every_byte():
    levels = np.array(list(itertools.product((-1, 0, 1), repeat=5)), np.int8)
    packed = trits.pack_trits(levels)
    assert len(set(packed[:, 0].tolist())) == 243 and (packed & 0x7F).max() == 121
    assert np.array_equal(trits.unpack_trits(packed, 5), levels)
    assert np.array_equal(trits.pack_trits(-levels) & 0x7F, packed & 0x7F)


@pytest.mark.parametrize("k", [1, 4, 5, 6, 11, 100, 509])
def test_rows_of_any_length(k):
    levels = np.random.default_rng(k).integers(-1, 2, (7, k)).astype(np.int8)
    packed = trits.pack_trits(levels)
    assert packed.shape == (7, -(-k // 5))
    assert np.array_equal(trits.unpack_trits(packed, k), levels)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 33), (7, 160), (3, 1000)])
def test_lookup_equals_multiplication(n, k, random_weight):
    w = random_weight(catalog.ternary(), n, k)
    xq = np.random.default_rng(k).integers(-127, 128, (3, k)).astype(np.int8)
    for x in (xq, np.full((1, k), 127, np.int8), np.full((1, k), -127, np.int8)):
        looked_up = trits.group_dot_trits(x, w)
        assert looked_up.dtype == np.int32
        assert np.array_equal(looked_up, integer.group_dot(x, w))


def test_what_is_not_five_trits_is_refused(random_weight):
    with pytest.raises(FormatError, match="expected trits -1, 0 and 1, got 2"):
        trits.pack_trits(np.array([[2]], np.int8))
    for form in (catalog.planes(2, 0), catalog.ternary(128), catalog.int8(0)):
        with pytest.raises(FormatError, match="expected ternary weights with one scale per row"):
            trits.group_dot_trits(np.zeros((1, 128), np.int8), random_weight(form, 2, 128))
    assert isinstance(random_weight(catalog.ternary(), 2, 5), QTensor)
