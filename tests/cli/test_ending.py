"""Names that `lutra quantize` does not write: the way that is shown is one that leads there."""

from pathlib import Path

import pytest

from lutra.cli.conditions import FORMATS
from lutra.cli.ending import check_ending
from lutra.errors import RequestError


def refusal(path: Path, *names: str) -> str:
    with pytest.raises(RequestError, match="expected a file name that ends in .safetensors, got ") as error:
        check_ending(str(path), names)
    return str(error.value)


@pytest.mark.parametrize(
    ("ending", "name", "command"),
    [("gguf", "Q4_0", "export"), ("gguf", "as-stored", "export"), ("lutra", "Q4_K", "pack"), ("lutra", "nf4", "pack")],
)
def test_the_command_that_writes_them(tmp_path: Path, ending: str, name: str, command: str) -> None:
    between = tmp_path / "a.safetensors"
    assert f"then: lutra {command} {between} {tmp_path}/a.{ending}" in refusal(tmp_path / f"a.{ending}", name)


@pytest.mark.parametrize("names", [["Q4_K"], ["Q4_0", "vectors8"], FORMATS])
def test_no_export_is_promised_that_is_refused(tmp_path: Path, names: list[str]) -> None:
    said = refusal(tmp_path / "a.gguf", *names)
    assert "then" not in said and "lutra export does not take " in said and "Q4_1, Q5_0, " in said
    assert said.count("Q4_K") == (names == ["Q4_K"])


def test_other_names_pass(tmp_path: Path) -> None:
    check_ending(str(tmp_path / "a.safetensors"), ["Q4_K"])
    check_ending(str(tmp_path / "a"), ["Q4_K"])  # the quantiser asks for the ending
