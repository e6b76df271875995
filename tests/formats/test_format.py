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
    (dict(sidecars=("perm_in",)), "sidecars: expected"),
    (dict(scale_dtype="bf16"), "scale_dtype: expected one of f16, f32, got bf16"),
    (dict(tie="free"), "tie: expected one of tied, got free"),
    (dict(scale_kind="e8m0"), "scale_kind: expected one of float, got e8m0"),
])  # fmt: skip
def test_refused(change, message):
    with pytest.raises(FormatError) as error:
        Format(**{**Q4, **change})
    assert message in str(error.value)
