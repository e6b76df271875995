"""Every bit of every code lies where packing.py says."""

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutra.errors import FormatError
from lutra.formats import packing

WIDTHS = sorted(packing.FIELDS)


def test_docstrings():
    assert doctest.testmod(packing).failed == 0


def test_two_bits_by_hand():
    codes = np.array([[1, 2, 3, 0, 3, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 3]], np.uint8)
    #          byte 0: w12 w8 w4 w0    byte 1: w13 w9 w5 w1    byte 2: w14 w10 w6 w2    byte 3: w15 w11 w7 w3
    expected = [0b00_00_11_01, 0b00_00_01_10, 0b00_10_00_11, 0b11_00_00_00, 0, 0, 0, 0]
    assert packing.pack(codes, 2, 32, 0).tolist() == [expected]


def test_three_bits_by_hand():
    codes = np.zeros((1, 32), np.uint8)
    codes[0, 0], codes[0, 17], codes[0, 31] = 0b101, 0b110, 0b111
    packed = packing.pack(codes, 3, 32, 0)[0]
    assert packed[0:4].tolist() == [0b01, 0, 0, 0]                            # low bits of weights 0-15
    assert packed[4:8].tolist() == [0, 0b10, 0, 0b11_00_00_00]                # low bits of weights 16-31
    assert packed[8:12].tolist() == [1, 1 << 4, 0, 1 << 7]                    # high bit: weight 4 s + j at byte j bit s


def test_seven_bits_by_hand():
    codes = np.zeros((1, 32), np.uint8)
    codes[0, 0], codes[0, 13], codes[0, 31] = 0b1_01_0011, 0b0_11_0000, 0b1_10_1111
    packed = packing.pack(codes, 7, 32, 0)[0]
    assert packed[0:16].tolist() == [0b0011] + [0] * 14 + [0b1111_0000]       # low four bits, 8 weights a word
    assert packed[16:20].tolist() == [0b01, 0b11_00_00_00, 0, 0]              # the next two of weights 0-15
    assert packed[20:24].tolist() == [0, 0, 0, 0b10_00_00_00]                 # and of weights 16-31
    assert packed[24:28].tolist() == [1, 0, 0, 1 << 7]                        # the highest bit


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_bit_has_its_place(bits):
    """One weight at a time, against a loop that reads the rule aloud."""
    for k in range(64):
        codes = np.zeros((1, 64), np.uint8)
        codes[0, k] = 2**bits - 1
        expected = np.zeros(8 * bits, np.uint8)
        word, low = k // 32 * bits, 0
        for width in packing.FIELDS[bits]:
            per_word = 32 // width
            index, within = word + k % 32 // per_word, k % per_word
            expected[4 * index + within % 4] |= (2**width - 1) << width * (within // 4)
            word, low = word + width, low + width
        assert packing.pack(codes, bits, 64, 0)[0].tolist() == expected.tolist()


@settings(deadline=None, max_examples=60)
@given(bits=st.sampled_from(WIDTHS), n=st.integers(1, 5), k=st.integers(1, 131), seed=st.integers(0, 2**32 - 1))
def test_unpack_inverts_pack(bits, n, k, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, (n, k)).astype(np.uint8)
    columns = packing.padded_k(k, 0)
    fill = 2**bits - 1
    packed = packing.pack(codes, bits, columns, fill)
    assert packed.shape == (n, columns * bits // 8)
    assert np.array_equal(packing.unpack(packed, bits, k), codes)
    assert (packing.unpack(packed, bits, columns)[:, k:] == fill).all()


@pytest.mark.parametrize("bits", WIDTHS)
def test_more_rows_than_the_cache_holds(bits, monkeypatch):
    codes = np.random.default_rng(0).integers(0, 2**bits, (11, 70)).astype(np.uint8)
    whole = packing.pack(codes, bits, 96, 0)
    monkeypatch.setattr(packing, "ROWS_BYTES", 300)                           # 3 rows at a time
    assert np.array_equal(packing.pack(codes, bits, 96, 0), whole)
    assert np.array_equal(packing.unpack(whole, bits, 70), codes)


def test_rows_and_columns_need_not_be_contiguous():
    codes = np.random.default_rng(0).integers(0, 16, (10, 64)).astype(np.uint8)
    packed = packing.pack(codes[::2, ::2], 4, 32, 0)
    assert np.array_equal(packing.unpack(packed, 4, 32), codes[::2, ::2])
    assert np.array_equal(packing.unpack(packed[::-1], 4, 32), codes[::2, ::2][::-1])


def test_padding_covers_blocks_and_groups():
    assert [packing.padded_k(k, 0) for k in (1, 32, 33)] == [32, 32, 64]
    assert [packing.padded_k(k, 256) for k in (1, 256, 257)] == [256, 256, 512]
    assert packing.padded_k(40, 16) == 64


def test_codes_that_do_not_fit():
    with pytest.raises(FormatError, match="expected codes below 4 for 2 bits, got 4"):
        packing.pack(np.array([[4]], np.uint8), 2, 32, 0)
    with pytest.raises(FormatError, match="expected codes of 1, 2, 3, 4, 5, 6, 7, 8 bits, got 9"):
        packing.layout(9)


def hf_pack(codes: np.ndarray) -> np.ndarray:
    """Four rows of N/4 per byte, as transformers stores BitNet: what words_from_hf_bitnet reads."""
    a, b, c, d = np.split(codes, 4)
    return a | b << 2 | c << 4 | d << 6


@pytest.mark.parametrize("shape", [(4, 1), (4, 32), (8, 33), (20, 100), (12, 256)])
def test_hugging_face_words(shape, monkeypatch):
    monkeypatch.setattr(packing, "ROWS_BYTES", 256)
    codes = np.random.default_rng(1).integers(0, 3, shape).astype(np.uint8)
    expected = packing.pack(codes, 2, packing.padded_k(shape[1], 0), 1)
    assert np.array_equal(packing.words_from_hf_bitnet(hf_pack(codes)), expected)


@pytest.mark.parametrize("place", [(0, 0), (5, 40), (15, 63)])
def test_hugging_face_words_refuse_code_3(place):
    codes = np.ones((16, 64), np.uint8)
    codes[place] = 3
    with pytest.raises(FormatError, match="expected ternary codes 0 to 2, got 3"):
        packing.words_from_hf_bitnet(hf_pack(codes))


def test_code_3_is_both_bits_of_one_field():
    assert not packing.has_code_3(np.array([0b10_01_10_01], np.uint8))
    assert packing.has_code_3(np.array([0b10_11_10_01], np.uint8))
    assert not packing.has_code_3(np.array([0b01_10], np.uint32))             # neighbours, not one field
