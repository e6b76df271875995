"""A stand-in for llama-bench: what it is given, what is read from it, and how it can fail."""

import json
import sys
from pathlib import Path

import pytest

from lutra.bench import rival
from lutra.bench.rival import Rival
from lutra.errors import FileError

RATES = [{"n_prompt": 64, "n_gen": 0, "avg_ts": 128.0}, {"n_prompt": 0, "n_gen": 8, "avg_ts": 4.0}]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Prints rates if it is asked for 64 and 8 tokens on 2 threads, else fails."""
    path = tmp_path / "bench"
    wanted = "-p 64 -n 8 -t 2 -r 1 -o json".split()
    path.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"if sys.argv[3:] != {wanted!r}:\n    sys.exit('noise\\ncannot do that')\n"
        f"print('''{json.dumps(RATES)}''')\n"
    )
    path.chmod(0o755)
    return path


def test_it_runs_with_the_same_work_and_threads(program: Path) -> None:
    """64 tokens at 128 a second are half a second, 8 at 4 are two."""
    assert Rival(program, program).run(64, 8, 2) == (0.5, 2.0)


def test_a_failure_shows_its_last_line_and_the_command(program: Path) -> None:
    with pytest.raises(FileError, match=r"exit code 1: cannot do that; try it alone: .* -p 64 -n 9 "):
        Rival(program, program).run(64, 9, 2)


def test_a_missing_program_or_model_is_named(program: Path) -> None:
    with pytest.raises(FileError, match="nowhere.gguf: expected a file"):
        Rival(program, program.parent / "nowhere.gguf")
    with pytest.raises(FileError, match="expected a file"):
        Rival(program.parent, program)


def test_a_file_that_is_no_program(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("hello")
    with pytest.raises(FileError, match="expected a program, got"):
        Rival(path, path).run(1, 1, 1)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[1]", '[{"n_prompt": 64}]', json.dumps(RATES[:1]),
                                  json.dumps([{**row, "avg_ts": 0} for row in RATES])])  # fmt: skip
def test_other_output_is_refused(text: str) -> None:
    with pytest.raises(FileError, match="expected rows of n_prompt=64 and n_gen=8"):
        rival.parse(text, 64, 8)
