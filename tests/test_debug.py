"""The words of LUTRA_DEBUG."""

import pytest

from lutra import debug
from lutra.errors import LutraError


@pytest.mark.parametrize(
    ("text", "word", "name", "wanted"),
    [
        ("", "ir", None, False),
        ("ir", "ir", None, True),
        ("ir", "ir", "norm", True),
        ("ir", "asm", "norm", False),
        ("ir,asm:norm", "asm", "norm", True),
        ("ir,asm:norm", "asm", "rope", False),
        ("asm:norm", "asm", None, True),
        ("asm:norm,asm:rope", "asm", "rope", True),
        ("asm:matmul_*", "asm", "matmul_lut", True),
        (" time , sched ", "sched", None, True),
        ("ir,,", "ir", None, True),
        ("ir:", "ir", "norm", True),
    ],
)
def test_enabled(monkeypatch: pytest.MonkeyPatch, text: str, word: str, name: str | None, wanted: bool) -> None:
    monkeypatch.setenv("LUTRA_DEBUG", text)
    assert debug.enabled(word, name) is wanted


def test_without_the_variable_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LUTRA_DEBUG", raising=False)
    assert not any(debug.enabled(word) for word in debug.WORDS)


def test_an_unknown_word_names_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTRA_DEBUG", "ir,assembly")
    with pytest.raises(LutraError, match="expected words of ir, llvm, asm, time, sched, interpret, got 'assembly'"):
        debug.enabled("ir")


def test_the_text_is_parsed_once() -> None:
    assert debug.parse("ir,asm:norm") is debug.parse("ir,asm:norm")
