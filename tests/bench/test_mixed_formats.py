"""The script that mixes formats, with a tiny model: mixtures keep to the bytes of the format they stand beside."""

import subprocess
import sys
from pathlib import Path

from tests.files.make_models import tiny_llama_gguf

FOLDER = Path(__file__).resolve().parents[2] / "bench"


def test_a_row_for_each_format_and_mixture(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("It was the best of times, it was the worst of times. " * 8)
    words = [tiny_llama_gguf(tmp_path / "tiny.gguf"), tmp_path / "text.txt", "--context", 32]
    words += ["--formats", "planes4-g32,int8-g32"]
    command = [sys.executable, "bench/mixed_formats.py", *map(str, words)]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    four, mixed, _, eight, same, _ = rows
    assert four[0] == "planes4-g32" and (four[1], eight[1]) == ("4.500", "8.500")
    assert mixed[0] == "mixed by scaled" and float(mixed[1]) <= 4.5 and same[1:] == eight[1:]
    assert float(eight[2]) < float(four[2])
