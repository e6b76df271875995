"""Special tokens in text: found only where they are wanted, never because a user typed their names.

`encode` with parse_special=False knows no special tokens.  With parse_special=True (rendered chat templates) the text
is cut at their names, except where `shield` has marked a name: message contents are shielded before they are rendered.
The mark is U+FDD0, which Unicode reserves for internal use and forbids in text; it never reaches a model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MARK = "\ufdd0"
REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class SpecialToken:
    """One special token; strip_left/right: it swallows the white space beside it (tokenizer.json: lstrip, rstrip)."""

    text: str
    id: int
    strip_left: bool = False
    strip_right: bool = False


class SpecialTokens:
    """The special tokens of a vocabulary, and how to find them."""

    def __init__(self, tokens: list[SpecialToken]) -> None:
        # A name with the mark in it could be made by shielding another one, and never be broken up.
        self._tokens = {token.text: token for token in tokens if token.text and MARK not in token.text}
        names = sorted(self._tokens, key=len, reverse=True)  # the longest name wins
        self._names = _any_of(names)
        self._shielded = _any_of([name for name in names if len(name) > 1])  # a single character cannot be broken up

    def split(self, text: str) -> Iterator[str | int]:
        """Cut text at special tokens: yields ordinary runs as str, marks removed, and special tokens as ids."""
        position = 0
        for match in self._names.finditer(text):
            token = self._tokens[match[0]]
            run = text[position : match.start()]  # empty where the token before has swallowed more
            run = run.rstrip() if token.strip_left else run
            if run:
                yield run.replace(MARK, "")
            yield token.id
            position = _after_space(text, match.end()) if token.strip_right else match.end()
        if position < len(text):
            yield text[position:].replace(MARK, "")

    def shield(self, text: str) -> str:
        """Return text in which `split` finds no special token; every name gets a mark behind its first character."""
        text = text.replace(MARK, REPLACEMENT)
        while self._shielded.search(text):  # again, as names may overlap
            text = self._shielded.sub(lambda match: match[0][0] + MARK + match[0][1:], text)
        return text


def _any_of(texts: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)) if texts else "(?!)")  # (?!) matches nothing


def _after_space(text: str, position: int) -> int:
    return len(text) - len(text[position:].lstrip())
