"""QTensor checks everything at the door, and its values are the formula of the format."""

import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.formats.qtensor import QTensor


def test_ternary_by_hand():
    codes = np.array([[0, 1, 2], [2, 2, 0]], np.uint8)
    w = QTensor.from_codes(catalog.ternary(), codes, np.array([[0.5], [3]], np.float32))
    assert w.dequantize().tolist() == [[-0.5, 0, 0.5], [3, 3, -3]]
    assert w.shape == (2, 3) and w.packed.shape == (2, 8)                     # K = 3 is padded to 32
    assert w.nbytes == 2 * 8 + 2 * 4


@pytest.mark.parametrize("name", catalog.FORMATS)
@pytest.mark.parametrize("k", [1, 100, 256])
def test_values_are_the_formula(name, k, random_weight):
    w = random_weight(catalog.find(name), 3, k)
    form, codes = w.format, w.codes()
    assert codes.shape == (3, k) and codes.max() < form.num_codes
    for row in range(3):
        for col in range(0, k, 7):
            g = col // form.group_size if form.group_size else 0
            zero = form.zero + (0 if w.zeros is None else int(w.zeros[row, g]))
            value = np.float32(int(codes[row, col]) - zero) * np.float32(w.scales[row, g])
            value = value if w.mins is None else value + np.float32(w.mins[row, g])
            assert w.dequantize()[row, col] == value


@pytest.mark.parametrize("name", catalog.FORMATS)
def test_rows_and_concat(name, random_weight):
    w = random_weight(catalog.find(name), 6, 70)
    order = [4, 0, 5]
    assert np.array_equal(w.rows(order).dequantize(), w.dequantize()[order])
    again = QTensor.concat([w.rows(slice(0, 2)), w.rows(slice(2, 6))])
    assert again.shape == w.shape and np.array_equal(again.packed, w.packed)
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
