"""Budgets in words."""

from pathlib import Path

import pytest

from lutra.cli import conditions
from lutra.errors import RequestError
from lutra.files import open_model
from lutra.model.config import config_from
from tests.files.make_models import tiny_llama_gguf


@pytest.mark.parametrize(
    ("text", "size"),
    [("2.5GB", 2.5e9), ("800 MB", 8e8), ("1.2GiB", 1.2 * 2**30), ("3k", 3000), ("1e6", 1e6), ("12B", 12), ("7", 7)],
)
def test_sizes(text: str, size: float) -> None:
    assert conditions.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1TB", "1.2.3", "0", "inf", "nan", "1e999"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(RequestError, match="expected a size as 2.5GB"):
        conditions.parse_size(text)


def test_increases() -> None:
    assert conditions.parse_increase("1%") == conditions.parse_increase("0.01") == 0.01
    for text in ("", "%", "-1%", "0", "much", "inf"):
        with pytest.raises(RequestError, match="expected an increase as 1%"):
            conditions.parse_increase(text)


@pytest.mark.parametrize("bpw", [float("nan"), float("inf"), 0.0, -1.0])
def test_bits_are_a_number(bpw: float, tmp_path: Path) -> None:
    file = open_model(tiny_llama_gguf(tmp_path / "tiny.gguf"))
    with pytest.raises(RequestError, match="expected a number above 0, got .* change --bpw"):
        conditions.condition(file, config_from(file), bpw=bpw)
