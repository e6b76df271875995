"""`lutra compare` and `lutra evaluate` with tiny models: what is printed, and errors in one line."""

import json
from pathlib import Path

import pytest

from lutra import cli
from lutra.engine import compare as comparing
from lutra.model.pack import pack
from tests.files.make_models import tiny_llama_gguf

QUESTION = '{"query": "It rained, so", "choices": ["it was wet.", "it was dry."], "gold": 0}\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, a text, and two files of questions."""
    folder = tmp_path_factory.mktemp("quality")
    tiny_llama_gguf(folder / "a.gguf")
    tiny_llama_gguf(folder / "b.gguf", quant="Q4_0")
    (folder / "text.txt").write_text("It was the best of times, it was the worst of times. " * 3)
    (folder / "copa.jsonl").write_text(QUESTION * 3)
    (folder / "lambada.jsonl").write_text('{"text": "It was the best of times"}\n')
    return folder


def run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert cli.exit_code([*map(str, words)]) == 0
    return capsys.readouterr().out


def test_evaluate_prints_a_row_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [folder / "copa.jsonl", folder / "lambada.jsonl"]
    lines = run(capsys, "evaluate", folder / "a.gguf", *files, "--limit", 2).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["copa", "lambada"]
    values = json.loads(run(capsys, "evaluate", folder / "a.gguf", *files, "-o", "json"))
    assert values[0]["questions"] == 3 and values[0]["accuracy"] in (0, 1) and "perplexity" in values[1]


def test_compare_prints_tables(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--text", folder / "text.txt", "--tasks", folder / "copa.jsonl", "--layers"]
    options = ["--rounds", 1, "--prompts", 1, "--context", 32, "--threads", 1]
    out = run(capsys, "compare", folder / "a.gguf", folder / "b.gguf", *words, *options)
    for text in ("decode tok/s", "KL divergence", "top-1 agreement", "greedy texts", "| A ", "layers.1.down", "copa"):
        assert text in out


def test_layers_of_a_packed_file_are_refused_before_anything_is_measured(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "compare", lambda *_: pytest.fail("measured"))
    pack(folder / "a.gguf", tmp_path / "a.lutra", "auto", lambda *_: None)
    assert cli.exit_code(["compare", str(folder / "a.gguf"), str(tmp_path / "a.lutra"), "--layers"]) == 2
    assert "a.lutra, which is packed; name its source" in capsys.readouterr().err


def test_compare_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--text", folder / "text.txt", "--tasks", folder / "copa.jsonl", "-o", "json"]
    options = ["--rounds", 1, "--prompts", 0, "--context", 32, "--threads", 1]
    a, b = json.loads(run(capsys, "compare", folder / "a.gguf", folder / "a.gguf", *words, *options))
    assert a["perplexity"] == b["perplexity"] and b["kl"]["max"] == 0 and a["tasks"][0]["task"] == "copa"


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["evaluate", "a.gguf", "nowhere.jsonl"], "expected a file of questions"),
        (["evaluate", "a.gguf", "text.txt"], "expected 6 lines of a question"),
        (["evaluate", "a.gguf"], "Missing argument"),
        (["compare", "a.gguf", "b.gguf", "--protocol", "mine"], "expected a protocol of"),
        (["perplexity", "a.gguf", "copa.jsonl"], 'expected an object with a "text"'),
        (["perplexity", "a.gguf", "text.txt", "--protocol", "gptq"], "expected a text of at least 256 tokens"),
    ],
)
def test_what_a_user_can_cause_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], match: str
) -> None:
    monkeypatch.chdir(folder)
    assert cli.exit_code(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and match in err and err.startswith("error: ")
