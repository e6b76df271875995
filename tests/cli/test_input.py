"""Telling model from prompt, and text that is read."""

import io
from pathlib import Path

import click
import pytest

from lutra.cli import input as words
from lutra.errors import FileError


@pytest.mark.parametrize(
    ("given", "flag", "model", "prompt"),
    [
        (["Once upon a time"], None, None, "Once upon a time"),
        (["Once"], None, None, "Once"),
        (["-"], None, None, "-"),
        ([""], None, None, ""),
        (["m.gguf", "Once"], None, "m.gguf", "Once"),
        (["org/repo"], None, "org/repo", None),
        (["org/repo:Q4_0"], None, "org/repo:Q4_0", None),
        (["yes / no"], None, None, "yes / no"),
        (["a/b/c"], None, None, "a/b/c"),
        (["org/repo"], "m.gguf", "m.gguf", "org/repo"),
        ([], "m.gguf", "m.gguf", None),
        ([], None, None, None),
    ],
)
def test_split_words(given: list[str], flag: str | None, model: str | None, prompt: str | None) -> None:
    assert words.split_words(given, flag) == (model, prompt)


def test_a_path_that_exists_is_a_model(tmp_path: Path) -> None:
    assert words.split_words([str(tmp_path)], None) == (str(tmp_path), None)


@pytest.mark.parametrize(("given", "flag"), [(["a", "b", "c"], None), (["a", "b"], "m.gguf")])
def test_too_many_words_ask_for_quotes(given: list[str], flag: str | None) -> None:
    with pytest.raises(click.UsageError, match="put the prompt in quotes"):
        words.split_words(given, flag)


def test_text_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MAX_BYTES", 4)
    assert words.read_text(io.BytesIO(b"1234"), "it") == "1234"
    with pytest.raises(FileError, match="it: expected at most 4 bytes of text, got more"):
        words.read_text(io.BytesIO(b"12345"), "it")
