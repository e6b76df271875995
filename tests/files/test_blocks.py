import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.files import blocks
from lutra.files.blocks import READABLE, decode_matrix
from tests.files.gguf_writer import BLOCKS, TYPE_IDS, random_blocks


def decode(name, stored):
    """stored uint8 [N, blocks, bytes]."""
    block_size = BLOCKS[name][0]
    return decode_matrix(READABLE[TYPE_IDS[name]], stored.reshape(-1), (len(stored), stored.shape[1] * block_size))


def f16(value):
    return list(np.array([value], "<f2").tobytes())


def block(*fields):
    return np.array([[sum(fields, [])]], np.uint8)


def test_q4_0_by_hand():
    # byte i: low nibble weight i, high nibble weight 16 + i; value 0.5 * (code - 8)
    w = decode("Q4_0", block(f16(0.5), [0xF0] + [0x88] * 15)).dequantize()[0]
    assert w[0] == -4.0 and w[16] == 3.5 and not w[1:16].any() and not w[17:].any()


def test_q4_1_by_hand():
    w = decode("Q4_1", block(f16(0.5), f16(-1.0), [0x21] + [0] * 15)).dequantize()[0]
    assert w[0] == -0.5 and w[16] == 0.0 and (w[1:16] == -1).all()


def test_q5_0_by_hand():
    # fifth bits of weights 0 and 17: bit 0 of byte 0, bit 1 of byte 2; value 0.5 * (code - 16)
    w = decode("Q5_0", block(f16(0.5), [0x01, 0, 0x02, 0], [0xF3, 0xF0] + [0] * 14)).dequantize()[0]
    assert w[0] == 0.5 * 3 and w[16] == 0.5 * -1 and w[17] == 0.5 * 15 and w[1] == -8 and w[31] == -8


def test_q5_1_by_hand():
    w = decode("Q5_1", block(f16(0.5), f16(-1.0), [0, 0, 0, 0x80], [0x01] + [0] * 14 + [0xF0])).dequantize()[0]
    assert w[0] == -0.5 and w[31] == 0.5 * 31 - 1 and (w[1:31] == -1).all()


def test_q8_0_by_hand():
    w = decode("Q8_0", block(f16(0.25), [1, 0xFF, 0x80, 0x7F] + [0] * 28)).dequantize()[0]
    assert w[:5].tolist() == [0.25, -0.25, -32.0, 31.75, 0.0]


def test_q4_k_by_hand():
    # scales 1..4 in bytes 0-3, mins 5..8 in bytes 4-7; scale 4: low 4 bits of byte 8 | top 2 of byte 0
    packed = [1 | 0x40, 2, 3, 4, 5, 6 | 0x80, 7, 8, 0x2F, 0x31, 0, 0]
    codes = [0] * 128
    codes[0] = 0x10  # weight 0: 0, weight 32: 1
    codes[64] = 0x07  # third pair of 32: weight 128: 7
    codes[96] = 0x30  # fourth pair: weight 224: 3, whose scale and min are 0
    w = decode("Q4_K", block(f16(1.0), f16(0.5), packed, codes)).dequantize()[0]
    assert w[0] == -0.5 * 5
    assert w[32] == 2 - 0.5 * 6
    assert w[128] == (15 + 16) * 7 - 0.5 * 2
    assert w[160] == -0.5 * (3 + 32)
    assert w[224] == 0


def test_q5_k_by_hand():
    # scale and min 1 for weights 0-63; bit j of byte l is the fifth bit of weight 32 j + l
    fifth, codes = [0] * 32, [0] * 128
    codes[3], fifth[3] = 0x52, 0b10  # weight 3: 2, weight 35: 16 + 5
    packed = [1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]
    w = decode("Q5_K", block(f16(1.0), f16(0.5), packed, fifth, codes)).dequantize()[0]
    assert w[3] == 2 - 0.5 and w[35] == 21 - 0.5 and w[36] == -0.5 and not w[64:].any()


def test_q2_k_by_hand():
    # scale 3, min 2 for weights 32-47; scale 15 for the last 16; field j of byte l of a half is weight 32 j + l
    scales, codes = [0] * 16, [0] * 64
    scales[2], scales[15] = 0x23, 0x0F
    codes[5], codes[63] = 0b11_01_10_11, 0b10_00_00_00  # weights 5: 3, 37: 2, 69: 1, 101: 3; weight 255: 2
    w = decode("Q2_K", block(scales, codes, f16(0.5), f16(2.0))).dequantize()[0]
    assert w[37] == 0.5 * 3 * 2 - 2 * 2 and w[38] == -2 * 2 and w[255] == 0.5 * 15 * 2
    assert not w[:32].any() and not w[48:255].any()


def test_q3_k_by_hand():
    # scale 0: low 4 bits 1, high 2 bits 3: 49 - 32 = 17; scale 13: low 2, high 1: 18 - 32 = -14; the others 32 - 32
    third, codes = [0] * 32, [0] * 64
    third[0], codes[0] = 0b0000_0001, 0b11  # weight 0: 4 + 3
    third[18], codes[32 + 18] = 0b0100_0000, 0b00_01_00_00  # weight 210, half 1, field 2, byte 18: 4 + 1
    packed = [0x01, 0, 0, 0, 0, 0x20, 0, 0, 0b10_10_10_11, 0b01_10_10_10, 0b10_10_10_10, 0b10_10_10_10]
    w = decode("Q3_K", block(third, codes, packed, f16(0.5))).dequantize()[0]
    assert w[0] == 0.5 * 17 * 3 and w[1] == 0.5 * 17 * -4 and w[210] == 0.5 * -14 * 1 and w[208] == 0.5 * -14 * -4
    assert not w[16:208].any() and not w[224:].any()


def test_q6_k_by_hand():
    low, high, scales = [0] * 128, [0] * 64, [1] * 16
    low[0] = 0x21  # weight 0: 1, weight 64: 2
    high[0] = 0b11_00_00_10  # weight 0 high 2, weight 96 high 3
    scales[6] = 0xFE  # -2, for weights 96-111
    w = decode("Q6_K", block(low, high, scales, f16(0.5))).dequantize()[0]
    assert w[0] == 0.5 * (0x21 - 32) and w[64] == 0.5 * (2 - 32) and w[96] == 0.5 * -2 * (48 - 32) and w[255] == -16


def test_tq2_0_by_hand():
    w = decode("TQ2_0", block([0b10_00_01_01] + [0x55] * 63, f16(3.0))).dequantize()[0]
    assert w[[0, 32, 64, 96]].tolist() == [0, 0, -3, 3] and w[1:32].tolist() == [0] * 31


def test_tq1_0_by_hand():
    # digits 2 0 1 2 0 of five trits: 2*81 + 0*27 + 1*9 + 2*3 + 0 = 177; stored ceil(177 * 256 / 243) = 187
    w = decode("TQ1_0", block([187] + [128] * 51, f16(1.0))).dequantize()[0]
    assert w[[0, 32, 64, 96, 128]].tolist() == [1, -1, 0, 1, -1]


@pytest.mark.parametrize("name", [name for name in BLOCKS if name not in ("Q1_0", "Q2_0")])  # it does not know these
@pytest.mark.parametrize(("n", "num_blocks"), [(1, 1), (5, 3)])
def test_equals_the_gguf_package(name, n, num_blocks):
    gguf = pytest.importorskip("gguf", reason="the gguf package is the outside reference for block formats")
    stored = random_blocks(np.random.default_rng(1), name, n, num_blocks * BLOCKS[name][0])
    expected = gguf.quants.dequantize(stored.reshape(n, -1), gguf.GGMLQuantizationType[name])
    weight = decode(name, stored)
    assert weight.shape == expected.shape
    assert np.array_equal(weight.dequantize(), expected)


@pytest.mark.parametrize("name", BLOCKS)
def test_reads_what_is_said(name):
    """The `recoded` text names the format that comes."""
    weight = decode(name, random_blocks(np.random.default_rng(2), name, 2, BLOCKS[name][0]))
    assert weight.format.name in READABLE[TYPE_IDS[name]].recoded


def test_chunks_of_rows_make_the_same_matrix(monkeypatch):
    stored = random_blocks(np.random.default_rng(3), "Q4_K", 7, 512)
    whole = decode("Q4_K", stored)
    monkeypatch.setattr(blocks, "CHUNK_WEIGHTS", 1100)  # two rows
    parts = decode("Q4_K", stored)
    assert np.array_equal(whole.packed, parts.packed) and np.array_equal(whole.dequantize(), parts.dequantize())


def test_q1_0_by_hand():
    w = decode("Q1_0", block(f16(0.5), [0b101] + [0] * 15)).dequantize()[0]
    assert w[:4].tolist() == [0.5, -0.5, 0.5, -0.5] and (w[3:] == -0.5).all()


def test_q2_0_by_hand():
    w = decode("Q2_0", block(f16(0.5), [0b11_10_01_00] + [0x55] * 15)).dequantize()[0]
    assert w[:4].tolist() == [-0.5, 0, 0.5, 1.0] and not w[4:].any()


def test_mxfp4_by_hand():
    # 2**(129 - 128) = 2 times the doubled levels; nibble 0x7 is 12 (6.0), 0x9 is -1 (-0.5)
    w = decode("MXFP4", block([129], [0x97] + [0] * 15)).dequantize()[0]
    assert w[0] == 24 and w[16] == -2 and not w[1:16].any()


def test_mxfp4_exponents():
    assert not decode("MXFP4", block([0], [0x80] + [0] * 15)).dequantize().any()  # 0 and -0
    for exponent, wrong in ((0, "exponents above 0"), (255, "NaN")):
        with pytest.raises(FormatError, match=wrong):
            decode("MXFP4", block([exponent], [0x11] * 16))


def test_iq4_xs_by_hand():
    # scale 1: low 4 bits 5 in the high nibble of byte 4, high 2 bits 2 at bits 2-3: 37 - 32 = 5; the others 0 - 32
    low, codes = [0x50, 0, 0, 0], [0x88] * 128  # level 8 of the table is 1
    codes[16] = 0x0F  # weights 32: 113, 48: -127
    w = decode("IQ4_XS", block(f16(0.5), [0b1000, 0], low, codes)).dequantize()[0]
    assert w[32] == 0.5 * 5 * 113 and w[48] == 0.5 * 5 * -127 and w[33] == 0.5 * 5 and w[0] == 0.5 * -32


@pytest.mark.parametrize("name", [name for name, (_, _, floats) in BLOCKS.items() if floats])
def test_refuses_scales_that_are_not_finite(name):
    stored = random_blocks(np.random.default_rng(4), name, 2, BLOCKS[name][0])
    at = next(iter(BLOCKS[name][2]))
    stored[1, 0, at : at + 2] = f16(np.inf)
    with pytest.raises(FormatError, match="finite"):
        decode(name, stored)


def test_refuses_a_fourth_ternary_code():
    with pytest.raises(FormatError, match="ternary codes"):
        decode("TQ2_0", block([0xC0] + [0] * 63, f16(1.0)))
