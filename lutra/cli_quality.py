"""What `lutra perplexity`, `compare` and `evaluate` are given, in words, and what they print."""

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lutra.cli_input import read_text
from lutra.cli_show import LoadProgress

if TYPE_CHECKING:
    from lutra.engine.llm import LLM


def perplexity(llm: "LLM", text: str, context: int | None, protocol: str) -> str:
    """Measure; return what is to be printed."""
    with LoadProgress() as progress:
        return str(llm.measure(text, context, progress, protocol))


def text_of(file: BinaryIO) -> str:
    """The text of a file: UTF-8 as it is, or the "text" of every line of a .jsonl file, joined by empty lines.

    Raises FileError for bytes that are no UTF-8 and lines that are no such object.
    """
    from lutra.engine.readers import joined_rows

    text = read_text(file, file.name)
    return joined_rows(text, file.name) if Path(file.name).suffix == ".jsonl" else text
