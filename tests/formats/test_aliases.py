"""Names from elsewhere: each means a row of the catalogue, or has a way on."""

import pytest

from lutra.errors import FormatError
from lutra.files.blocks_write import WRITABLE
from lutra.formats import aliases, catalog


@pytest.mark.parametrize("name", aliases.NAMES)
def test_an_alias_is_a_format_of_the_catalogue(name: str) -> None:
    form = catalog.find(name)
    assert form.name == aliases.NAMES[name] == catalog.find(name.lower()).name
    assert catalog.SOURCES[form.name] in catalog.describe(name)


def test_a_gguf_type_is_what_the_gguf_writer_makes_of_its_format() -> None:
    for kind, form in WRITABLE.items():
        assert catalog.find(kind) == form, kind


@pytest.mark.parametrize(("name", "near"), [("Q4_K_M", "planes4-g32-mins-u8xf16"), ("iq2_xxs", "planes2-g64-mins"),
                                            ("BF16", "as-stored")])  # fmt: skip
def test_what_means_no_single_format_has_a_way_on(name: str, near: str) -> None:
    with pytest.raises(FormatError, match=f"got {name}; {name} .*{near}"):
        catalog.find(name)


@pytest.mark.parametrize("name", aliases.OTHERS)
def test_the_way_on_is_a_format(name: str) -> None:
    near = aliases.OTHERS[name][1]
    assert near in (aliases.advice(name) or "") and (not near or catalog.find(near).name == near)
    assert aliases.advice("planes4-g32") is None
