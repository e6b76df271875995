"""What the command line is given to read: the words after `lutra run`, a prompt on stdin, the lines of a chat."""

import importlib.util
import sys
from collections.abc import Sequence
from typing import BinaryIO

import click

from lutra.cli.model import is_model
from lutra.errors import FileError, RequestError

MAX_BYTES = 1 << 27  # four for each of the characters that the tokenizer takes at most

def split_words(words: Sequence[str], model: str | None) -> tuple[str | None, str | None]:
    """Tell which of the words after `lutra run` is the model and which the prompt; None where there is none."""
    most = 2 if model is None else 1
    if len(words) > most:
        raise click.UsageError(f"expected at most {most} words, got {len(words)}; put the prompt in quotes")
    if len(words) == 2:
        return words[0], words[1]
    if len(words) == 1 and model is None and is_model(words[0]):
        return words[0], None
    return model, words[0] if words else None


def read_prompt(prompt: str | None) -> str:
    """Return the prompt, from stdin if it is "-", or missing while something is piped in."""
    if prompt not in (None, "-"):
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise click.UsageError("expected a prompt, got none; give one in quotes, or - to read it from stdin")
    text = read_text(sys.stdin.buffer, "stdin").rstrip("\r\n")
    if not text:
        raise RequestError("expected a prompt on stdin, got nothing; pipe some text in, or give the prompt in quotes")
    return text


def read_text(file: BinaryIO, name: str) -> str:
    """Read all of a file as UTF-8, whatever the terminal speaks; raises FileError that names the file and the fault."""
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise FileError(f"{name}: expected at most {MAX_BYTES} bytes of text, got more; give a part of it")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"{error.reason} at byte {error.start}"
        raise FileError(f"{name}: expected UTF-8 text, got {problem}; convert it to UTF-8") from error


def read_message() -> str | None:
    """Read one line of a chat, with history and editing on a terminal; None at the end of the input."""
    on_terminal = sys.stdin.isatty()
    if on_terminal and importlib.util.find_spec("readline"):
        import readline  # noqa: F401  (its import is what gives input() its line editing)
    try:
        return input("> " if on_terminal else "").strip()
    except EOFError:
        if on_terminal:
            click.echo()
        return None
