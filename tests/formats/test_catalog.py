"""Names spell axes; every row is drawn truthfully, and docs/formats.md says what the code says."""

import random
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutra.errors import FormatError
from lutra.formats import catalog, packing, scales
from lutra.formats.format import AXES, Format
from lutra.formats.tables import FLOATS, TABLES

EVERY = catalog.FORMATS | catalog.FLOAT_FORMATS
PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text("utf-8")


def test_names_by_hand():
    names = {
        "ternary": catalog.ternary(),
        "ternary-g256": catalog.ternary(256),
        "planes4-g32": catalog.planes(4, 32),
        "planes4-g32-mins-f32": catalog.planes(4, 32, offset="mins", scale_dtype="f32"),
        "planes2-g64-zero1": catalog.planes(2, 64, zero=1),
        "planes6-g16-f32": catalog.planes(6, 16, scale_dtype="f32"),
        "planes4-row": catalog.planes(4, 0),
        "planes4-row-f16": catalog.planes(4, 0, scale_dtype="f16"),
        "planes3-g64-token": catalog.planes(3, 64, activation_group=0),
        "int8-g16-f32": catalog.int8(16, scale_dtype="f32"),
        "int8-g128-zeros": catalog.int8(128, offset="zeros"),
        "planes1x3-g128-mins": catalog.planes(1, 128, terms=3, offset="mins"),
        "ternaryx2": catalog.ternary(terms=2),
        "ternary-g32-mins": catalog.ternary(32, offset="mins"),
        "iq4nl-g32": catalog.table("iq4nl", 32),
        "e2m1-g32-e8m0": catalog.table("e2m1", 32, scale_dtype="e8m0"),
        "planes4-g32-mins-u8xf16": catalog.planes(4, 32, offset="mins", scale_dtype="u8", super_dtype="f16"),
        "e2m1-g16-e4m3xf32-row": catalog.table("e2m1", 16, scale_dtype="e4m3", super_dtype="f32", super_group=0),
        "signx2-g64-bf16-token": catalog.table("sign", 64, terms=2, scale_dtype="bf16", activation_group=0),
    }
    for name, form in names.items():
        assert form.name == name
        assert catalog.find(name) == form


def test_defaults():
    q4_0, ternary = catalog.planes(4, 32), catalog.ternary()
    assert (q4_0.zero, q4_0.scale_dtype, q4_0.activation_group, q4_0.num_codes) == (8, "f16", 32, 16)
    assert (ternary.zero, ternary.scale_dtype, ternary.activation_group, ternary.num_codes) == (1, "f32", 0, 3)
    assert catalog.planes(4, 32, offset="zeros").zero == 0
    assert catalog.planes(4, 32, zero=8).name == "planes4-g32"
    assert catalog.int8(0).zero == 128


def test_a_name_is_a_format_and_a_format_a_name():
    every = [*every_combination(), *EVERY.values()]
    axes = {str({**vars(form), "name": ""}): form.name for form in every}
    assert len(set(axes.values())) == len(axes) > 3000
    for form in every:
        assert catalog.find(form.name) == form
        assert catalog.from_axes(catalog.axes_of(form)) == form


def every_combination() -> Iterator[Format]:
    """Formats of a few groups with everything that the constructors can make of them."""
    scales_there_are = [dict(scale_dtype=dtype) for dtype in (None, *scales.SINGLE)] + [
        dict(scale_dtype=lower, super_dtype=upper, super_group=size)
        for lower in scales.LOWER for upper in scales.UPPER for size in (0, 256)
    ]  # fmt: skip
    makers = [partial(catalog.planes, bits) for bits in range(1, 8)]
    makers += [catalog.ternary, catalog.int8, *(partial(catalog.table, name) for name in (*TABLES, *FLOATS))]
    for maker, group, scale, offset in product(makers, (0, 16, 32), scales_there_are, AXES["offset"]):
        for more in ({}, {"terms": 2}, {"activation_group": 0}):
            with suppress(FormatError, TypeError):                                # int8 has no terms
                yield maker(group, offset=offset, **scale, **more)


def test_every_axis_has_rows():
    assert len(EVERY) == len(catalog.ROWS) + len(catalog.FLOAT_ROWS)
    for axis, values in AXES.items():
        used = {getattr(form, axis) for form in EVERY.values()}
        assert used == set(values), axis


@pytest.mark.parametrize("name", ["planes4-g23", "Q9_0", "", "planes4-g32-f16", "planes4-g32-row", "planes4",
                                  "planes4-g32-u8", "int8x2-g32", "iq4nl-g32-zeros", "ternary-row", "planes4x1-g32"])
def test_unknown_name(name):
    with pytest.raises(FormatError, match=f"expected the name of a format, got {name}; did you mean [a-zA-Z]"):
        catalog.find(name)


def test_near_names_are_offered():
    for wrong, near in {"planes4-g23": "planes4-g32", "ternery": "ternary", "Q4K": "Q4_K",
                        "w3a16": "planes3-g64-mins", "zzz": "ternary"}.items():
        with pytest.raises(FormatError, match=near):
            catalog.find(wrong)


@pytest.mark.parametrize("name", EVERY)
def test_the_picture_is_where_the_bits_are(name):
    """Set one weight to its largest code and look at the field of the picture that names it."""
    form = catalog.find(name)
    text = catalog.describe(name)
    assert text.startswith(name) and catalog.SOURCES[name] in text
    rows = re.findall(r"byte (\d+) +\| (.*)\|", text)
    seen = set()
    for byte, fields in rows:
        cells = [int(cell.strip(" w")) for cell in fields.split("|")]         # high bits first
        width = 8 // len(cells)
        for place, weight in enumerate(reversed(cells)):
            codes = np.zeros((1, 32), np.uint8)
            codes[0, weight] = 2**form.bits - 1
            packed = packing.pack(codes, form.bits, 32, 0)[0]
            assert packed[int(byte)] >> width * place & (2**width - 1) == 2**width - 1
            seen.add(weight)
    assert seen == set(range(max(seen) + 1))


def test_description_by_hand():
    text = catalog.describe("planes4-g128-zeros")
    assert "W[n, k] = scales[n, k // 128] * (code - zeros[n, k // 128])" in text
    assert "4.1875 bits per weight: 4 and 24 bits per 128 weights" in text
    assert "scales f16 [N, K/128], zeros u8 [N, K/128]" in text
    assert "2 bits per weight, plus 4 bytes per row" in catalog.describe("ternary")
    assert "not in the table" in catalog.describe("planes3-g64-zeros-token")


def test_the_page_is_true():
    assert catalog.describe("planes3-g128-zeros") in PAGE
    assert all(f"| `{axis}` |" in PAGE for axis in AXES)
    assert all(f"`{name}`" in PAGE for name in (*TABLES, *FLOATS))
    told = PAGE.split("## The packed order")[0]
    for name in re.findall(r"`((?:planes\d|ternary|int8|e2m1|e4m3|iq4nl)[-\w]*)`", told):
        assert name in (*TABLES, *FLOATS) or catalog.find(name).name == name
    assert catalog.find("planes2-g16-zeros-f32")


def test_axes_say_a_format_and_make_it_again():
    assert catalog.axes_of(catalog.planes(2, 64, zero=1)) == {
        "alphabet": "uniform", "bits": 2, "group_size": 64, "zero": 1, "scale_dtype": "f16", "offset": "none",
        "activation_group": 64,
    }  # fmt: skip
    assert catalog.axes_of(catalog.table("e2m1", 16, scale_dtype="e4m3", super_dtype="f32", super_group=0)) == {
        "alphabet": "uniform", "bits": 4, "group_size": 16, "zero": 0, "scale_dtype": "e4m3", "offset": "none",
        "activation_group": 16, "levels": "e2m1", "super_dtype": "f32",
    }  # fmt: skip
    plain = catalog.planes(4, 32)
    assert catalog.from_axes(catalog.axes_of(plain) | {"terms": 1, "levels": "uniform"}) == plain


@pytest.mark.parametrize(
    "change",
    [{"bits": 9}, {"bits": True}, {"bits": 4.0}, {"bits": [4]}, {"bits": None}, {"zero": 16}, {"zero": -1},
     {"zero": 10**30}, {"group_size": 24}, {"group_size": "32"}, {"scale_dtype": "f64"}, {"offset": "scales"},
     {"activation_group": 64}, {"alphabet": "trit"}, {"name": "x"}, {"levels": "nf5"}, {"levels": ["nf4"]},
     {"levels": "nf4"}, {"terms": 5}, {"terms": True}, {"terms": 2, "offset": "zeros"}, {"super_dtype": "f16"},
     {"super_dtype": "bf16", "scale_dtype": "u8"}, {"super_group": 256}, {"super_group": 128}, {"scale_dtype": "u8"},
     {"scale_dtype": "e8m0", "offset": "mins"}, {"scale_kind": "float"}],
    ids=str,
)  # fmt: skip
def test_axes_that_make_no_format(change):
    with pytest.raises(FormatError, match="expected .*, got .*; "):
        catalog.from_axes(catalog.axes_of(catalog.planes(4, 32)) | change)


ANY_AXES = {"zero": (0, 1, 8, 128), "activation_group": AXES["group_size"]} | {
    axis: AXES[axis] for axis in (*catalog.STATED_AXES, *catalog.UNSTATED) if axis in AXES
}
JUNK = [None, True, 4.0, float("nan"), 10**30, -1, "", "f16\n", [], {}]


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**32))
def test_whatever_is_stated_is_a_format_or_refused(seed):
    """Values that exist, sometimes one that does not."""
    rng = random.Random(seed)
    stated = {axis: rng.choice(values) for axis, values in ANY_AXES.items()}
    if rng.random() < 0.3:
        stated[rng.choice(list(stated))] = rng.choice(JUNK)
    try:
        form = catalog.from_axes(stated)
    except FormatError as error:
        assert "expected" in str(error) and "\n" not in str(error)
    else:
        assert catalog.find(form.name) == form and catalog.from_axes(catalog.axes_of(form)) == form


def test_axes_left_out():
    axes = catalog.axes_of(catalog.planes(4, 32))
    for axis in axes:
        with pytest.raises(FormatError, match=axis):
            catalog.from_axes({name: value for name, value in axes.items() if name != axis})
