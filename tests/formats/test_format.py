"""A format is one value on each axis; values that no axis has, or that contradict each other, are refused."""

import pytest

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.formats.format import Format

Q4 = dict(
    name="f", storage="planes", bits=4, group_size=32, zero=8, scale_dtype="f16", offset="none", activation_group=32
)


def test_sizes_by_hand():
    q4_0 = Format(**Q4)
    assert (q4_0.padded_k(100), q4_0.num_groups(100), q4_0.row_bytes(100)) == (128, 4, 64)
    assert q4_0.bits_per_weight(128) == 4 + 16 / 32
    assert catalog.planes(4, 128, offset="zeros").bits_per_weight(256) == 4 + (16 + 8) / 128
    assert catalog.planes(4, 32, offset="mins", scale_dtype="f32").bits_per_weight(256) == 6
    assert catalog.planes(6, 16, scale_dtype="f32").bits_per_weight(256) == 8
    assert catalog.planes(7, 0).row_bytes(100) == 128 * 7 // 8
    assert catalog.ternary().bits_per_weight(2560) == 2 + 32 / 2560
    assert catalog.int8(16).num_groups(16) == 2                               # the second one is padding


def test_sizes_of_the_new_axes_by_hand():
    hlq = catalog.planes(1, 128, terms=3, offset="mins")                      # 3 bits, 3 scales and a min of 16 bits
    assert (hlq.row_bytes(200), hlq.bits_per_weight(256)) == (256 * 3 // 8, 3 + 4 * 16 / 128)
    assert hlq.beside(200) == {"scales": ("f16", 6), "mins": ("f16", 2)}
    q4_k = catalog.planes(4, 32, offset="mins", scale_dtype="u8", super_dtype="f16")
    assert q4_k.bits_per_weight(512) == 4 + 16 / 32 + 32 / 256
    assert q4_k.beside(300) == {
        "scales": ("u8", 10), "mins": ("u8", 10), "super_scales": ("f16", 2), "super_mins": ("f16", 2)
    }  # fmt: skip
    nvfp4 = catalog.table("e2m1", 16, scale_dtype="e4m3", super_dtype="f32", super_group=0)
    assert nvfp4.beside(64) == {"scales": ("e4m3", 4), "super_scales": ("f32", 1)}
    assert nvfp4.bits_per_weight(64) == 4 + 8 / 16 + 32 / 64
    assert catalog.table("e2m1", 32, scale_dtype="e8m0").bits_per_weight(64) == 4.25
    assert catalog.ternary(terms=2).row_bytes(33) == 2 * 64 * 2 // 8          # 33 weights are stored as 64


def test_levels_by_hand():
    assert catalog.planes(2, 64, zero=1).level_values.tolist() == [-1, 0, 1, 2]
    e2m1 = [0, 1, 2, 3, 4, 6, 8, 12]                                          # twice 0, 0.5, 1, 1.5, 2, 3, 4, 6
    assert catalog.table("e2m1", 32).level_values.tolist() == e2m1 + [-level for level in e2m1]


@pytest.mark.parametrize("change, message", [
    (dict(bits=9), "format f: bits: expected one of 1, 2, 3, 4, 5, 6, 7, 8, got 9; choose"),
    (dict(group_size=48), "group_size: expected one of 0, 16, 32, 64, 128, 256, got 48"),
    (dict(storage="codebook"), "storage: expected one of planes, bytes, got codebook"),
    (dict(bits=8), "storage: expected bytes for 8 bits, planes for fewer, got planes"),
    (dict(storage="bytes", bits=7), "storage: expected bytes for 8 bits, planes for fewer, got bytes"),
    (dict(zero=16), "zero: expected a code, 0 to 15, got 16"),
    (dict(zero=-1), "zero: expected a code"),
    (dict(offset="both"), "offset: expected one of none, zeros, mins, got both"),
    (dict(activation_group=64), "activation_group: expected 0 or 32, got 64"),
    (dict(alphabet="trit"), "alphabet: expected uniform unless codes have 2 bits"),
    (dict(alphabet="trit", bits=2, zero=2), "zero: expected 1 for trits, got 2"),
    (dict(alphabet="trit", bits=2, zero=1, offset="zeros"), "offset: expected none or mins for trits, got zeros"),
    (dict(scale_dtype="f64"), "scale_dtype: expected one of f16, f32, bf16, e8m0, u8, i8, e4m3, got f64"),
    (dict(scale_kind="e8m0"), "scale_kind: expected one of float, two-level, got e8m0"),
    (dict(levels="nf3"), "levels: expected one of uniform, sign,"),
    (dict(levels="nf4"), "zero: expected 0 where levels are a table, got 8"),
    (dict(levels="nf4", zero=0, bits=3), "bits: expected 4, as the table nf4 has, got 3"),
    (dict(levels="nf4", zero=0, offset="zeros"), "offset: expected none or mins where levels are a table, got zeros"),
    (dict(terms=5), "terms: expected one of 1, 2, 3, 4, got 5"),
    (dict(terms=2, bits=8, storage="bytes"), "terms: expected 1 for bytes, got 2"),
    (dict(terms=2, offset="zeros"), "offset: expected none or mins with several terms, got zeros"),
    (dict(terms=2, group_size=16, activation_group=16), "group_size: expected whole blocks of 32 with several terms"),
    (dict(scale_dtype="u8"), "scale_dtype: expected one of f16, f32, bf16, e8m0 for float scales, got u8"),
    (dict(scale_kind="two-level", super_dtype="f16"), "expected one of u8, i8, e4m3 for two-level scales, got f16"),
    (dict(scale_kind="two-level", scale_dtype="u8"), "super_dtype: expected f16 or f32 for two-level scales, none"),
    (dict(super_dtype="f16"), "super_dtype: expected f16 or f32 for two-level scales, none for others, got f16"),
    (dict(super_group=256), "super_group: expected 0 unless scales are two-level, got 256"),
    (dict(super_group=64), "super_group: expected one of 0, 256, got 64"),
    (dict(scale_dtype="e8m0", offset="mins"), "offset: expected none or zeros with e8m0 scales"),
])  # fmt: skip
def test_refused(change, message):
    with pytest.raises(FormatError) as error:
        Format(**{**Q4, **change})
    assert message in str(error.value)
