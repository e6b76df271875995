"""GGUF blocks written: bytes that were read come back, and the gguf package reads the same values."""

import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.files.blocks_write import SIZES, WRITABLE, encode
from lutra.formats import catalog
from lutra.formats.qtensor import QTensor
from lutra.quantize.rounding import round_to_nearest
from tests.files.gguf_writer import TYPE_IDS, random_blocks
from tests.files.test_blocks import decode

NEW_ENOUGH = [name for name in WRITABLE if name not in ("Q1_0", "Q2_0")]


@pytest.mark.parametrize("name", WRITABLE)
def test_bytes_that_were_read_come_back(name):
    stored = random_blocks(np.random.default_rng(1), name, 3, 512)
    if name == "NVFP4":
        stored[..., :4] &= 0x7F
    written, blocks = encode(decode(name, stored))
    assert written == name and np.array_equal(blocks, stored.reshape(3, -1))


def random_weight(form, n, k, seed=0):
    """Any codes, and values beside them that every type has room for."""
    rng = np.random.default_rng(seed)
    groups = form.num_groups(k)
    codes = rng.integers(0, form.num_codes, (n, k)).astype(np.uint8)
    low = {"u8": (0, 16), "i8": (-32, 32), "e8m0": (100, 140), "e4m3": (0, 100)}.get(form.scale_dtype)

    def beside(columns):
        if low:
            return rng.integers(*low, (n, columns)).astype(form.dtype)
        return rng.uniform(0.01, 0.1, (n, columns)).astype(form.dtype)

    def upper():
        if form.super_dtype == "none":
            return None
        if form.levels == "e2m1":
            return np.full((n, 1), 0.5, np.float32)
        return rng.uniform(0.001, 0.01, (n, form.num_supers(k))).astype(form.super_dtype.replace("f", "float"))

    scales = beside(groups)
    mins = None if form.offset == "none" else beside(groups)
    if form.bits == 1:
        scales = -mins * np.float16(2)
    super_mins = None if form.offset == "none" or form.super_dtype == "none" else -upper()
    return QTensor.from_codes(form, codes, scales, mins=mins, super_scales=upper(), super_mins=super_mins)


@pytest.mark.parametrize("name", NEW_ENOUGH)
@pytest.mark.parametrize("k", [256, 768])
def test_the_gguf_package_reads_the_same_values(name, k):
    gguf = pytest.importorskip("gguf", reason="the gguf package is the outside reference for block formats")
    weight = random_weight(WRITABLE[name], 5, k)
    written, blocks = encode(weight)
    assert written == name
    assert np.array_equal(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name]), weight.dequantize())


@pytest.mark.parametrize(("form", "name"), [
    (catalog.planes(4, 128), "Q4_0"), (catalog.planes(4, 0, scale_dtype="f16"), "Q4_0"),
    (catalog.planes(4, 64, offset="mins"), "Q4_1"), (catalog.int8(64), "Q8_0"),
])  # fmt: skip
def test_longer_groups_repeat_their_scales(form, name):
    w = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    weight = round_to_nearest(w, form)
    written, blocks = encode(weight)
    assert written == name and TYPE_IDS[name]
    block_size, block_bytes = SIZES[name]
    again = decode(name, blocks.reshape(4, 256 // block_size, block_bytes))
    assert np.array_equal(again.dequantize(), weight.dequantize())


@pytest.mark.parametrize("form", [catalog.planes(4, 16), catalog.planes(6, 32),
                                  catalog.planes(3, 32), catalog.planes(1, 64, offset="mins", terms=2)])
def test_formats_that_no_type_holds_are_refused(form):
    with pytest.raises(FormatError, match=r"expected a format that a GGUF type holds .* got .*; choose one of"):
        encode(random_weight(form, 2, 256) if form.terms == 1 else two_terms(form))


def two_terms(form):
    codes = np.zeros((2, 2, 256), np.uint8)
    return QTensor.from_codes(form, codes, np.ones((2, 8), np.float16), mins=np.zeros((2, 4), np.float16))


def test_f32_scales_that_f16_holds_exactly_are_written():
    codes = np.random.default_rng(0).integers(0, 3, (3, 256)).astype(np.uint8)
    name, blocks = encode(QTensor.from_codes(catalog.ternary(), codes, np.full((3, 1), 0.75, np.float32)))
    assert name == "TQ2_0"
    assert np.array_equal(decode(name, blocks[:, None]).dequantize(), (codes.astype(int) - 1) * 0.75)
    with pytest.raises(FormatError, match="that f16 holds"):
        encode(QTensor.from_codes(catalog.ternary(), codes, np.full((3, 1), 0.1, np.float32)))


def test_rows_that_are_not_whole_blocks_are_refused():
    with pytest.raises(FormatError, match="K a multiple of 32"):
        encode(round_to_nearest(np.ones((2, 48), np.float32), catalog.planes(4, 32)))


def test_scales_of_more_bits_than_a_type_has_are_refused():
    weight = random_weight(WRITABLE["Q4_K"], 2, 256)
    weight.scales[:] = 64
    with pytest.raises(FormatError, match="6 bits"):
        encode(weight)
