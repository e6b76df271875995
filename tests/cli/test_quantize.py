"""`lutra quantize` from the command line: a file, a summary, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lutra.cli import allocate, cli, exit_code
from lutra.cli.quantize import excess
from lutra.engine.llm import LLM
from lutra.errors import CapacityError, FileError
from lutra.files import open_model
from lutra.files.names import LINEARS
from lutra.model import quantize as quantizer
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
    assert f"{out}: {out.stat().st_size / 1e6:.2f} MB" in said
    assert "14 x planes4-g32-zeros, 1 x int8-g32" in said or "1 x int8-g32, 14 x planes4-g32-zeros" in said
    for word in ("bits each", "down ", "head ", "speed      estimated ", "tok/s", "GB/s", "  measured "):
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


def test_a_second_rounding_and_short_rows_are_said(model: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert "padded" not in run(model, first, "--format", "Q4_0", "--no-speed")
    assert open_model(first).tensors["layers.0.q"].stored_type == "planes4-g32"
    said = run(first, second, "--format", "planes4-g256", "--no-speed")
    assert "is quantised already (planes4-g32), and errors add up" in said and "measured" not in said
    assert "rows are padded to whole groups, " in said


def test_what_stands_beside_weights_is_not_taken_for_padding(model: Path, tmp_path: Path) -> None:
    assert "padded" not in run(model, tmp_path / "a.safetensors", "--format", "Q4_0", "--lorc", 4, "--no-speed")


def test_a_file_that_became_larger_than_asked_says_so(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = allocate.Choice({f"layers.{i}.{name}": "int8-g32" for i in range(2) for name in LINEARS}, "the choice")
    monkeypatch.setattr(allocate, "for_file", lambda *_: choice)
    said = run(model, tmp_path / "a.safetensors", "--bpw", "8.2", "--no-speed")
    assert "the choice" in said and "note       0.300 bits more than --bpw 8.2; ask for that much less" in said


def test_how_much_larger_than_asked_a_file_is() -> None:
    summary = quantizer.Summary(Path("a.safetensors"), 2_005_000, 0, {"layers.0.q": ("int8-g32", 34, 32, 1.0, 0.0)})
    (more,), (wider,) = excess(summary, "2MB", None), excess(summary, None, 8.25)
    assert more == "note       0.0050 MB more than --budget 2MB allows; ask for that much less"
    assert wider == "note       0.250 bits more than --bpw 8.25; ask for that much less"
    for budget, bpw in (("2.005MB", None), (None, 8.5), (None, None)):
        assert not list(excess(summary, budget, bpw))


def test_what_cannot_run_here_is_quantised_all_the_same(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise CapacityError("expected less; have more")

    monkeypatch.setattr(LLM, "load", load)
    assert "not measured: expected less; have more" in run(model, tmp_path / "a.safetensors", "--format", "Q8_0")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(KeyboardInterrupt, 130, ""), (FileError("a: expected room; free some"), 2, "error: a: expected room; free some")],
)
def test_an_interrupted_run_says_where_its_work_lies_and_goes_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Any,
    code: int, said: str,
) -> None:  # fmt: skip
    whole, out, plain = tmp_path / "whole.safetensors", tmp_path / "out.safetensors", quantizer.Layer.put
    run(model, whole, "--format", "planes4-g32", "--no-speed")

    def put(self: quantizer.Layer, name: str, *rest: Any) -> None:
        if self.prefix == "layers.1.":
            raise error
        plain(self, name, *rest)

    words = ["quantize", str(model), str(out), "--format", "planes4-g32", "--no-speed"]
    monkeypatch.setattr(quantizer.Layer, "put", put)
    assert exit_code(words) == code
    err = capsys.readouterr().err
    assert f"unfinished: layers done: 1, in {tmp_path / '.out.safetensors.part'}; the same command goes on" in err
    assert said in err and not out.exists()
    monkeypatch.setattr(quantizer.Layer, "put", plain)
    assert exit_code(words) == 0 and out.read_bytes() == whole.read_bytes()
    assert sorted(tmp_path.iterdir()) == [out, whole]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "planes9-g32"], "name of a format"),
        (["--format", "Q4_K_M"], "is a mixture of types; planes4-g32-mins-u8xf16 is"),
        (["--bpw", "4", "--method", "magic"], "change --method"),
        (["--bpw", "4", "--lorc", "2"], "--bpw to choose every format, got --lorc beside it, whose bytes"),
        (["--budget", "1MB", "--keep", "*.q=Q8_0", "--head-format", "Q8_0"], "got --head-format and --keep beside it"),
        (["--max-ppl-increase", "1%", "--per-layer", "no.json"], "--max-ppl-increase to choose every format, got"),
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
