"""The Pareto picture: its front by hand, its table, its PNG."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "bench"
MODELS = [
    {"name": "a/float", "bytes": 8e6, "bits_per_weight": 32.0, "perplexity": 4.0, "decode_tok_s": 10.0, "family": "x"},
    {"name": "a/four", "bytes": 1e6, "bits_per_weight": 4.5, "perplexity": 4.2, "decode_tok_s": 60.0, "family": "x"},
    {"name": "a/bad", "bytes": 2e6, "bits_per_weight": 8.5, "perplexity": 4.3, "decode_tok_s": 40.0, "family": "y"},
]


@pytest.fixture
def pareto(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    import pareto as module

    return module


def test_the_front_by_hand(pareto: ModuleType) -> None:
    assert [model["name"] for model in pareto.unbeaten(MODELS, "bytes")] == ["a/four", "a/float"]
    lines = pareto.table(MODELS, "bytes").splitlines()
    assert [line.count("*") for line in lines[2:]] == [1, 0, 1] and "four" in lines[2] and "1.00" in lines[2]


def test_a_picture_of_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "one.json").write_text(json.dumps(MODELS[:2]))
    (tmp_path / "two.json").write_text(json.dumps(MODELS[2]))
    picture = tmp_path / "pictures" / "pareto.png"
    words = [tmp_path / "one.json", tmp_path / "two.json", tmp_path / "one.json", "--picture", picture]
    done = subprocess.run([sys.executable, "bench/pareto.py", *map(str, words)], cwd=FOLDER.parent, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"\n") == 5 and picture.read_bytes().startswith(b"\x89PNG")


def test_a_crowd_is_named_by_its_front_and_one_family(pareto: ModuleType, tmp_path: Path) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    crowd = [{**MODELS[2], "name": f"y {i}", "bytes": 3e6 + i} for i in range(9)]
    others = [{**MODELS[2], "name": f"z {i}", "bytes": 4e6 + i, "family": "z"} for i in range(3)]
    named: list[str] = []
    axes, plain = pyplot.Axes, pyplot.Axes.annotate
    try:
        axes.annotate = lambda self, text, *rest, **kind: (named.append(text), plain(self, text, *rest, **kind))[1]
        pareto.draw([*MODELS, *crowd, *others], "bytes", tmp_path / "a.png", "a/float", "z")
    finally:
        axes.annotate = plain
    assert named == ["four", "0", "1", "2"]  # the family is said by the mark, and the model compared with not drawn
    with pytest.raises(pareto.FileError, match="expected a model called b"):
        pareto.draw(MODELS, "bytes", tmp_path / "b.png", "b")


@pytest.mark.parametrize("content", ["{", "[1]", '[{"name": "a"}]', '[{"name": "a", "perplexity": 3}]'])
def test_what_is_no_result_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    words = [sys.executable, "bench/pareto.py", str(tmp_path / "bad.json")]
    done = subprocess.run(words, cwd=FOLDER.parent, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
