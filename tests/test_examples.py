"""Every example runs as its docstring says, and prints what it is about."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.files.make_models import tiny_llama_gguf

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(name: str, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, words)],
        cwd=EXAMPLES.parent, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_has_a_test_and_says_how_to_run_it() -> None:
    source = Path(__file__).read_text("utf-8")
    names = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert [name[:3] for name in names] == [f"{i:02}_" for i in range(1, len(names) + 1)]
    for name in names:
        assert f'run("{name}"' in source
        assert f"python examples/{name}" in (EXAMPLES / name).read_text("utf-8")


@pytest.mark.parametrize("model", ["the model that comes along", "another"])
def test_run_a_model(tmp_path: Path, model: str) -> None:
    words = [tiny_llama_gguf(tmp_path / "tiny.gguf")] if model == "another" else []
    out = run("01_run_a_model.py", *words)
    assert "\nOnce upon a time" in out
    assert re.search(r"\d+ tokens of prompt took [\d.]+ ms, \d+ more [\d.]+ ms\n$", out)


def test_write_a_kernel() -> None:
    out = run("02_write_a_kernel.py")
    assert "largest of each row: [1. 1. 1.]" in out
    assert "kernel scale_rows(" in out
    assert re.search(r"^portable +equals its definition; lines of ir \d+, llvm \d+, asm \d+$", out, re.MULTILINE)


def test_quantise_and_multiply() -> None:
    rows = [line.split() for line in run("03_quantise_and_multiply.py").splitlines()[1:]]
    assert [row[0] for row in rows] == ["ternary", "planes2-g64-mins", "planes3-g64-mins", "planes4-g32", "int8-g32"]
    errors = [float(row[3].rstrip("%")) for row in rows]
    assert errors == sorted(errors, reverse=True), "more bits, less error"
