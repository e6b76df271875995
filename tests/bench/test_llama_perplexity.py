"""The comparison with llama.cpp, with two small programs in its place: what they are given, and what is made of it."""

import stat
from pathlib import Path
from types import ModuleType

import pytest

from lutra.errors import FileError

FOLDER = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    import llama_perplexity as module

    return module


def program(folder: Path, text: str) -> None:
    path = folder / "llama-perplexity"
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_the_estimate_is_read(script: ModuleType, tmp_path: Path) -> None:
    said = 'echo "0.1 I Final estimate: PPL = 4.2214 +/- 0.07991" >&2'
    program(tmp_path, f'echo "$@" > "$(dirname "$0")/given"; {said}')
    assert script.theirs(tmp_path, Path("m.gguf"), Path("t.txt"), 128, 1) == 4.2214
    assert "-m m.gguf -f t.txt -c 128 -t 1 -b 512 --no-repack" in (tmp_path / "given").read_text()


@pytest.mark.parametrize(("text", "match"), [("echo no", "final estimate"), ("echo bad; exit 3", "exit code 3: bad")])
def test_a_rival_that_fails_is_said(script: ModuleType, tmp_path: Path, text: str, match: str) -> None:
    program(tmp_path, text)
    with pytest.raises(FileError, match=match):
        script.theirs(tmp_path, Path("m.gguf"), Path("t.txt"), 128, 1)


def test_types_that_go_to_every_matrix_and_those_asked_for_by_tensor(script: ModuleType) -> None:
    assert script.quantize_arguments("Q4_K") == ["--pure", "{source}", "{target}", "Q4_K"]
    assert script.quantize_arguments("MXFP4")[-3:] == ["{source}", "{target}", "Q8_0"]
