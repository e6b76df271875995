"""`lutra quantize` from the command line: a file, a summary, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from lutra.cli import cli, exit_code
from lutra.files import open_model
from tests.files.make_models import tiny_hf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_hf(folder, "llama")
    return folder


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli, ["quantize", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_summary_says_sizes_errors_and_speed(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    said = run(model, out, "--format", "planes4-g32-zeros", "--head-format", "int8-g32")
    assert f"{out}: {out.stat().st_size / 1e6:.1f} MB" in said
    assert "14 x planes4-g32-zeros, 1 x int8-g32" in said or "1 x int8-g32, 14 x planes4-g32-zeros" in said
    for word in ("bits each", "down ", "head ", "at most", "tok/s", "GB/s"):
        assert word in said


def test_calibration_and_formats_by_weight(model: Path, tmp_path: Path) -> None:
    text, formats, out = tmp_path / "text.txt", tmp_path / "formats.json", tmp_path / "out.safetensors"
    text.write_text("the cat and the hat in another land " * 50)
    formats.write_text(json.dumps({"layers.1.o": "int8-g32", "layers.1.v": "int8-g32"}))
    run(model, out, "--format", "planes4-g32-zeros", "--calib", text, "--calib-windows", 3, "--calib-tokens", 32,
        "--per-layer", formats, "--keep", "layers.1.v=as-stored")  # fmt: skip
    file = open_model(out)
    assert file.metadata["recipe"]["method"] == "gptq+clip"  # what a text is for, where nothing else is said
    assert file.tensors["layers.1.o"].stored_type == "int8-g32" and file.tensors["layers.1.v"].stored_type == "F32"
    assert file.tensors["layers.0.v"].stored_type == "planes4-g32-zeros"


def test_packed_and_inspected_afterwards(model: Path, tmp_path: Path) -> None:
    out, packed = tmp_path / "out.safetensors", tmp_path / "out.lutra"
    run(model, out, "--format", "planes4-g32")
    wanted = {"pack": "weights in mad order", "inspect": "planes4-g32"}
    for arguments in (["pack", out, packed], ["inspect", "model", out], ["inspect", "model", packed]):
        result = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)
        assert result.exit_code == 0 and wanted[str(arguments[0])] in result.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "planes9-g32"], "name of a format"),
        (["--format", "planes4-g32", "--method", "gptq"], "give one with --calib"),
        (["--format", "planes4-g32", "--method", "magic"], "change --method"),
        (["--format", "planes4-g32", "--keep", "layers.0.q"], "PATTERN=FORMAT"),
        (["--format", "planes4-g32", "--per-layer", "no.json"], "not there"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    options: list[str], said: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["quantize", str(model), str(tmp_path / "out.safetensors"), *options]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
