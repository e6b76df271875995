"""The other commands, what a user can cause, and the exit codes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lutra import cli
from lutra.cli import train
from lutra.errors import CapacityError, FileError, RequestError
from lutra.formats import catalog, vectors
from tests.cli.parrot import Parrot


def test_perplexity(asked: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("12345", "utf-8")
    assert cli.exit_code(["perplexity", "m.gguf", str(tmp_path / "text.txt")]) == 0
    assert capsys.readouterr().out == "windows None 12345\n"
    (tmp_path / "rows.jsonl").write_text('{"text": "1"}\n{"text": "2"}\n', "utf-8")
    words = ["perplexity", "m.gguf", str(tmp_path / "rows.jsonl"), "--protocol", "gptq", "--context", "64"]
    assert cli.exit_code(words) == 0
    assert capsys.readouterr().out == "gptq 64 1\n\n2\n"


def test_pack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import lutra.model.pack

    asked: list[tuple[Any, ...]] = []

    def pack(*arguments: Any) -> str:
        asked.append(arguments[:3])
        return "written"

    monkeypatch.setattr(lutra.model.pack, "pack", pack)
    assert cli.exit_code(["pack", str(tmp_path), "m.lutra", "--order", "lut"]) == 0
    assert capsys.readouterr() == ("written\n", "") and asked == [(str(tmp_path), "m.lutra", "lut")]
    assert cli.exit_code(["pack", str(tmp_path), str(tmp_path)]) == 2
    assert "directory" in capsys.readouterr().err


def test_tune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import lutra.model.tune

    asked: list[Any] = []

    class Finding:
        def cells(self) -> dict[str, str]:
            return {"kernel": "mad", "gain": "7 %"}

    def tune(kinds: Any, threads: int, progress: Any) -> list[Finding]:
        asked.append((len(kinds), kinds[0].name, kinds[-1].name, threads))
        return [Finding()]

    monkeypatch.setattr(lutra.model.tune, "tune", tune)
    line = ["tune", "--shape", "tiny", "--format", "planes4-g32", "--head", "int8-g32", "--threads", "1"]
    assert cli.exit_code(line) == 0
    out = capsys.readouterr().out
    assert "| mad    |  7 % |" in out and "planes4-g32 512x256: mad" in out and "texts stay the same" in out
    assert asked == [(5, "planes4-g32", "int8-g32", 1)]
    for wrong, why in (("--shape=x", "a shape of tiny"), ("--format=x", "name of a format"), (".", "got both")):
        assert cli.exit_code(["tune", *line[1:], wrong]) == 2
        assert why in capsys.readouterr().err
    assert len(asked) == 1


def test_inspect_model(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(["inspect", "model"]) == 0
    assert capsys.readouterr().out == "a parrot\n"


def test_inspect_format(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(["inspect", "format", "ternary"]) == 0
    assert capsys.readouterr().out.startswith("ternary ")
    assert cli.exit_code(["inspect", "format"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == [*catalog.SOURCES, *vectors.NAMES]
    assert cli.exit_code(["inspect", "format", "vectors8"]) == 0
    assert capsys.readouterr().out.startswith("vectors8 ")


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("run", "chat", "inspect", "doctor", "bench", "tune", "perplexity", "train"))


def test_train_without_torch_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train.importlib.util, "find_spec", lambda name: None)
    assert cli.exit_code(["train", "--anything"]) == 2
    assert "pip install 'lutra[train]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["nope"],
        ["run", "a", "b", "c"],
        ["run", "--top-p", "1.5", "hi"],
        ["run", "--temperature", "-1", "hi"],
        ["run", "--threads", "0", "hi"],
        ["run", "--prefill-threads", "0", "hi"],
        ["run", "--nope", "hi"],
        ["run", "-m", "nothere", "hi"],
        ["chat", "nothere"],
        ["inspect", "model", "nothere"],
        ["inspect", "format", "nothere"],
        ["perplexity", "m.gguf", "no such file"],
        ["bench", "--prompt", "0"],
    ],
    ids=" ".join,
)
def test_what_a_user_can_cause_is_one_error_and_exit_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and "Traceback" not in err


@pytest.mark.parametrize("error", [CapacityError, FileError, RequestError])
def test_an_error_of_the_engine_is_exit_2(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: type[Exception]
) -> None:
    def stream(self: Parrot, prompt: str, params: Any) -> Iterator[str]:
        yield "Onc"
        raise error("expected this, got that; do so")

    monkeypatch.setattr(Parrot, "stream", stream)
    assert cli.exit_code(["run", "hi"]) == 2
    assert capsys.readouterr().err == "error: expected this, got that; do so\n"


def test_ctrl_c_ends_the_line_and_exits_130(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stream(self: Parrot, prompt: str, params: Any) -> Iterator[str]:
        yield "Onc"
        raise KeyboardInterrupt

    monkeypatch.setattr(Parrot, "stream", stream)
    assert cli.exit_code(["run", "hi"]) == 130
    assert capsys.readouterr() == ("Onc", "\n")


def test_a_closed_pipe_is_quiet(repository: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "lutra", "--help"], stdout=write, stderr=subprocess.PIPE, cwd=repository
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(("words", "code"), [(["run"], 2), (["chat"], 0), (["run", "hi"], 0)])
def test_closed_streams_are_empty_ones(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, words: list[str], code: int
) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert cli.exit_code(words) == code
