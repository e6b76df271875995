"""Lossless: every bit comes back, damage is noticed, and weights take about 11 bits."""

import dataclasses
import doctest

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lutra.errors import FormatError
from lutra.quantize import dfloat
from lutra.quantize.dfloat import AT_ONCE, BLOCK, MAX_LENGTH, code_lengths, codes_of, squeeze, unsqueeze


def weights(count: int, dtype=ml_dtypes.bfloat16) -> np.ndarray:
    return (np.random.default_rng(count).standard_normal(count) * 0.02).astype(dtype)


def test_docstrings():
    assert doctest.testmod(dfloat).failed == 0


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("count", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, AT_ONCE - 1, AT_ONCE, AT_ONCE + 5])
def test_around_the_sizes_of_blocks(count, dtype):
    w = weights(count, dtype)
    assert np.array_equal(unsqueeze(squeeze(w)), w.view(np.uint16))


@given(arrays.arrays(np.uint16, arrays.array_shapes(max_dims=3, max_side=20)))
def test_all_bits_come_back(bits):
    found = unsqueeze(squeeze(bits))
    assert found.shape == bits.shape and np.array_equal(found, bits)


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=40).filter(any))
def test_codes_are_complete_and_none_begins_another(counts):
    lengths = code_lengths(np.array(counts))
    used = np.flatnonzero(lengths)
    assert np.array_equal(used, np.flatnonzero(counts)) and lengths.max() <= MAX_LENGTH
    codes = codes_of(lengths)
    texts = [format(codes[value], f"0{lengths[value]}b")[::-1] for value in used]
    assert not any(a != b and b.startswith(a) for a in texts for b in texts)
    assert len(used) == 1 or sum(2.0 ** -len(text) for text in texts) == 1


def test_very_uneven_counts_stay_within_the_longest_code():
    lengths = code_lengths(np.array([2**i for i in range(40)]))
    assert lengths.max() == MAX_LENGTH and lengths[-1] == 1


def test_the_code_is_as_short_as_the_entropy_allows():
    w = weights(1 << 16)
    high = (w.view(np.uint16) >> 7 & 255).astype(np.uint8)
    shares = np.bincount(high)[np.unique(high)] / len(high)
    entropy = -(shares * np.log2(shares)).sum()
    bits = 8 * squeeze(w).nbytes / len(w)
    assert 8 + entropy <= bits < 8 + entropy + 0.15 and bits < 11


@pytest.mark.parametrize("field", ["lengths", "starts", "words", "low", "shape"])
def test_damage_is_noticed(field):
    good = squeeze(weights(3 * BLOCK))
    worse = {"lengths": np.roll(good.lengths, 1) // 2, "starts": good.starts + np.uint64(1), "words": good.words[:-40],
             "low": good.low[:-1], "shape": (3 * BLOCK + 1,)}  # fmt: skip
    with pytest.raises(FormatError, match="the file is damaged"):
        unsqueeze(dataclasses.replace(good, **{field: worse[field]}))


def test_random_words_never_crash():
    good, rng = squeeze(weights(3 * BLOCK)), np.random.default_rng(0)
    with pytest.raises(FormatError, match="expected every block to end where the next begins"):
        unsqueeze(dataclasses.replace(good, words=rng.integers(0, 2**32, len(good.words), dtype=np.uint32)))


def test_errors():
    with pytest.raises(FormatError, match="expected some values of 16 bits, got 2 of float32"):
        squeeze(np.zeros(2, np.float32))
    with pytest.raises(FormatError, match="expected some values of 16 bits, got 0"):
        squeeze(np.zeros(0, np.float16))
