"""A model that repeats what it was given, in the place of a real one; tests/test_run.py runs the real one."""

import io
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest


class Parrot:
    """A model that says its prompt again, word by word."""

    stats = SimpleNamespace(
        prompt_tokens=10, cached_tokens=0, generated_tokens=5,
        prefill_s=0.1, decode_s=0.2, load_s=0.05, first_token_s=0.1,
    )

    def stream(self, prompt: str, params: Any) -> Iterator[str]:
        self.params = params
        yield from prompt.split()

    def chat(self, messages: list[dict[str, str]], params: Any) -> Iterator[str]:
        yield f"{len(messages)} messages, the last {messages[-1]['content']!r}"

    def describe(self) -> str:
        return "a parrot"

    def measure(self, text: str, context: int | None, progress: Any, protocol: str) -> str:
        progress("measuring", len(text), len(text))
        return f"{protocol} {context} {text}"


PARROT = Parrot()


def stdin_is(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
