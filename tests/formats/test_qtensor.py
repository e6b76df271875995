"""QTensor checks everything at the door, and its values are the formula of the format."""

from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.formats.qtensor import ARRAYS, QTensor
from lutra.formats.tables import TABLES
from tests.formats.conftest import make_weight
from tests.formats.parts import min_at, random_codes, scale_at


def test_ternary_by_hand():
    codes = np.array([[0, 1, 2], [2, 2, 0]], np.uint8)
    w = QTensor.from_codes(catalog.ternary(), codes, np.array([[0.5], [3]], np.float32))
    assert w.dequantize().tolist() == [[-0.5, 0, 0.5], [3, 3, -3]]
    assert w.shape == (2, 3) and w.packed.shape == (2, 8)                     # K = 3 is padded to 32
    assert w.nbytes == 2 * 8 + 2 * 4


def test_table_by_hand():
    """MXFP4: codes 1, 7 and 15 are 0.5, 6 and -6 times a power of two; the table holds twice that."""
    form = catalog.table("e2m1", 32, scale_dtype="e8m0")
    codes = np.zeros((1, 64), np.uint8)
    codes[0, :3], codes[0, 32] = [1, 7, 15], 2
    w = QTensor.from_codes(form, codes, np.array([[127 - 1, 127 + 2]], np.uint8))
    assert w.dequantize()[0, [0, 1, 2, 3, 32]].tolist() == [0.5, 6, -6, 0, 2 * 4]


def test_terms_by_hand():
    """HLQ with two planes: 0.5 * bit + 4 * bit + min; the bits of a group lie side by side, plane after plane."""
    form = catalog.planes(1, 32, terms=2, offset="mins")
    codes = np.zeros((1, 2, 64), np.uint8)
    codes[0, 0, [0, 2, 40]] = 1
    codes[0, 1, [1, 2]] = 1
    scales, mins = np.array([[0.5, 4, 2, 8]], np.float16), np.array([[-1, 3]], np.float16)
    w = QTensor.from_codes(form, codes, scales, mins=mins)
    assert w.dequantize()[0, [0, 1, 2, 3, 40, 63]].tolist() == [-0.5, 3, 3.5, -1, 5, 3]
    assert w.packed.view(np.uint32).tolist() == [[1 | 1 << 16, 1 << 8 | 1 << 16, 1 << 2, 0]]  # weight 4 s + j: byte j
    assert np.array_equal(w.codes(), codes)


def test_two_trit_planes_by_hand():
    codes = np.array([[[0, 1, 2, 2], [2, 1, 0, 2]]], np.uint8)
    w = QTensor.from_codes(catalog.ternary(terms=2), codes, np.array([[3, 1]], np.float32))
    assert w.dequantize().tolist() == [[-2, 0, 2, 4]] and w.packed.shape == (1, 2 * 8)


def test_two_levels_by_hand():
    """Q4_K: (d * sub scale) * code + dmin * sub min, with d = 0.5 for 256 weights, then 2."""
    form = catalog.planes(4, 32, offset="mins", scale_dtype="u8", super_dtype="f16")
    codes = np.zeros((1, 288), np.uint8)
    codes[0, [0, 32, 256]] = [3, 3, 15]
    scales, mins = np.zeros((2, 1, 9), np.uint8)
    scales[0, [0, 1, 8]], mins[0, [1, 8]] = [2, 63, 1], [4, 255]
    w = QTensor.from_codes(form, codes, scales, None, mins, np.array([[0.5, 2]], np.float16),
                           np.array([[-0.25, 1]], np.float16))  # fmt: skip
    assert w.dequantize()[0, [0, 1, 32, 33, 256, 257]].tolist() == [3, 0, 94.5 - 1, -1, 30 + 255, 255]
    assert w.scale_values()[0, [0, 1, 8]].tolist() == [1, 31.5, 2] and w.min_values()[0, 8] == 255


def test_float_scales_of_a_byte_by_hand():
    """NVFP4: e4m3 1.5 (0x3C), 448 (0x7E) and -2**-9 (0x81), times one f32 for the row."""
    form = catalog.table("e2m1", 16, scale_dtype="e4m3", super_dtype="f32", super_group=0)
    scales = np.array([[0x3C, 0x7E, 0x81]], np.uint8)
    w = QTensor.from_codes(form, np.full((1, 48), 2, np.uint8), scales, super_scales=np.array([[0.5]], np.float32))
    assert w.dequantize()[0, ::16].tolist() == [1.5, 448, -(2.0**-9)]
    assert w.scales.tolist() == [[0x3C, 0x7E, 0x81, 0]]                       # 48 weights are stored as 64


def test_bf16_scales_by_hand():
    form = catalog.planes(4, 32, scale_dtype="bf16")
    w = QTensor.from_codes(form, np.full((1, 32), 9, np.uint8), np.array([[1.0078125]], form.dtype))
    assert w.dequantize()[0, 0] == 1 + 2**-7


def test_bytes_with_zeros_by_hand():
    form = catalog.int8(32, offset="zeros")
    codes = np.full((1, 32), 255, np.uint8)
    w = QTensor.from_codes(form, codes, np.array([[2]], np.float16), np.array([[200]], np.uint8))
    assert w.dequantize()[0, 0] == 110


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(list(catalog.FORMATS.values())), st.integers(1, 5), st.integers(1, 300), st.integers(0, 2**32))
def test_codes_come_back_and_rows_agree(form, n, k, seed):
    codes = random_codes(form, n, k, np.random.default_rng(seed))
    w = make_weight(form, n, k, seed)
    assert np.array_equal(w.codes(), codes)
    again = QTensor.from_codes(form, w.codes(), *(getattr(w, part) for part in ARRAYS[1:]))
    assert np.array_equal(again.packed, w.packed)
    assert w.rows([n - 1]).dequantize().tobytes() == w.dequantize()[n - 1].tobytes()


@pytest.mark.parametrize("name", catalog.FORMATS)
@pytest.mark.parametrize("k", [1, 100, 256])
def test_values_are_the_formula(name, k, random_weight):
    w = random_weight(catalog.find(name), 3, k)
    form, values = w.format, w.dequantize()
    codes = w.codes().reshape(3, form.terms, k)
    assert values.shape == (3, k) and values.dtype == np.float32 and codes.max() < form.num_codes
    levels = range(-form.zero, 256) if form.levels == "uniform" else TABLES[form.levels].tolist()
    for row in range(3):
        for col in range(0, k, 7):
            g = col // form.group_size if form.group_size else 0
            zero = 0 if w.zeros is None else int(w.zeros[row, g])
            parts = [
                np.float32(levels[codes[row, term, col]] - zero) * scale_at(w, row, g, term)
                for term in range(form.terms)
            ]
            value = reduce(np.add, parts)
            assert values[row, col] == (value if w.mins is None else value + min_at(w, row, g))


@pytest.mark.parametrize("name", catalog.FORMATS)
def test_rows_and_concat(name, random_weight):
    w = random_weight(catalog.find(name), 6, 70)
    order = [4, 0, 5]
    assert np.array_equal(w.rows(order).dequantize(), w.dequantize()[order])
    again = QTensor.concat([w.rows(slice(0, 2)), w.rows(slice(2, 6))])
    assert again.shape == w.shape and all(np.array_equal(getattr(again, part), getattr(w, part)) for part in ARRAYS)
    assert again.nbytes == w.nbytes == sum(getattr(w, part).nbytes for part in ARRAYS if getattr(w, part) is not None)
    assert np.array_equal(again.dequantize(), w.dequantize())


def test_concat_refuses_what_does_not_agree(random_weight):
    a, b = random_weight(catalog.planes(4, 32), 2, 64), random_weight(catalog.int8(32), 2, 64)
    with pytest.raises(FormatError, match="got planes4-g32 with K=64, int8-g32 with K=64; stack only"):
        QTensor.concat([a, b])
    with pytest.raises(FormatError, match="got planes4-g32 with K=64, planes4-g32 with K=96"):
        QTensor.concat([a, random_weight(catalog.planes(4, 32), 2, 96)])
    with pytest.raises(FormatError, match="got none"):
        QTensor.concat([])


def test_groups_of_padding_get_scale_zero():
    scales = np.ones((1, 1), np.float32)
    w = QTensor.from_codes(catalog.int8(16, scale_dtype="f32"), np.full((1, 16), 129, np.uint8), scales)
    assert w.scales.tolist() == [[1, 0]]
    assert w.dequantize().tolist() == [[1] * 16]


Q4_0, TERNARY, Q4_1 = catalog.planes(4, 32), catalog.ternary(), catalog.planes(4, 32, offset="mins")
GPTQ = catalog.planes(4, 32, offset="zeros")
MXFP4 = catalog.table("e2m1", 32, scale_dtype="e8m0")
NVFP4 = catalog.table("e2m1", 16, scale_dtype="e4m3", super_dtype="f32", super_group=0)
TWO_LEVEL = catalog.planes(4, 32, scale_dtype="i8", super_dtype="f32")
CODES = np.ones((2, 64), np.uint8)
F16 = np.ones((2, 2), np.float16)
F32_ROW = np.ones((2, 1), np.float32)


@pytest.mark.parametrize("form, arguments, message", [
    (TERNARY, (CODES * 3, F32_ROW), "ternary: expected ternary codes 0 to 2 (value + 1), got 3; the weight is damaged"),
    (Q4_0, (CODES * 16, F16), "expected codes below 16 for 4 bits, got 16"),
    (Q4_0, (CODES.astype(np.int8), F16), "planes4-g32: codes: expected uint8 [N, K], got int8 [2, 64]"),
    (Q4_0, (CODES[0], F16), "codes: expected uint8 [N, K], got uint8 [64]"),
    (Q4_0, (CODES, F16.astype(np.float32)), "scales: expected float16 [2, 2], got float32 [2, 2]; convert it"),
    (Q4_0, (CODES, F16[:, :1]), "scales: expected float16 [2, 2], got float16 [2, 1]"),
    (Q4_0, (CODES, F16 * np.float16(np.inf)), "scales: expected finite values, got inf or nan"),
    (Q4_0, (CODES, F16, None, F16), "mins: this format does not take them (offset is none); leave out mins"),
    (Q4_1, (CODES, F16), "mins: this format needs them (offset is mins); give mins"),
    (Q4_1, (CODES, F16, None, F16 * np.float16(np.nan)), "mins: expected finite values"),
    (GPTQ, (CODES, F16, F16), "zeros: expected uint8 [2, 2], got float16 [2, 2]"),
    (GPTQ, (CODES, F16, np.full((2, 2), 17, np.uint8)), "zeros: expected at most 16, got 17"),
    (catalog.planes(1, 32, terms=2), (CODES, F16), "codes: expected uint8 [N, 2, K], got uint8 [2, 64]"),
    (Q4_0, (CODES[:, None], F16), "codes: expected uint8 [N, K], got uint8 [2, 1, 64]"),
    (MXFP4, (CODES, np.full((2, 2), 255, np.uint8)), "scales: expected finite values"),
    (MXFP4, (CODES, F16), "scales: expected uint8 [2, 2], got float16 [2, 2]"),
    (NVFP4, (CODES, np.full((2, 4), 0xFF, np.uint8), None, None, F32_ROW), "scales: expected finite values"),
    (NVFP4, (CODES, np.zeros((2, 4), np.uint8)), "super_scales: this format needs them (scale_kind is two-level)"),
    (NVFP4, (CODES, np.zeros((2, 4), np.uint8), None, None, F32_ROW * np.float32(np.nan)), "super_scales: expected"),
    (NVFP4, (CODES, np.zeros((2, 4), np.uint8), None, None, np.ones((2, 2), np.float32)),
     "super_scales: expected float32 [2, 1], got float32 [2, 2]"),
    (Q4_0, (CODES, F16, None, None, F16), "super_scales: this format does not take them (scale_kind is float)"),
    (TWO_LEVEL, (CODES, np.full((2, 2), 127, np.int8), None, None, F32_ROW * np.float32(3e38)),
     "super_scales: expected finite products with what is below them, got up to 3e+38"),
    (TERNARY, (np.ones((1, 65537), np.uint8), F32_ROW[:1]), "at most 65536 weights to share a scale, got K=65537"),
    (Q4_0, (np.ones((0, 64), np.uint8), F16[:0]), "expected at least one row and one column, got shape (0, 64)"),
])  # fmt: skip
def test_refused_at_the_door(form, arguments, message):
    with pytest.raises(FormatError) as error:
        QTensor.from_codes(form, *arguments)
    assert message in str(error.value)


def test_packed_of_another_size_is_refused():
    with pytest.raises(FormatError, match=r"packed: expected uint8 \[2, 32\], got uint8 \[2, 16\]"):
        QTensor(Q4_0, (2, 64), np.zeros((2, 16), np.uint8), F16)


def test_code_3_is_found_in_any_byte_of_packed():
    packed = np.full((2, 16), 0b01010101, np.uint8)
    QTensor(TERNARY, (2, 64), packed, F32_ROW)
    packed[1, 13] |= 0b00001100
    with pytest.raises(FormatError, match="got 3"):
        QTensor(TERNARY, (2, 64), packed, F32_ROW)
