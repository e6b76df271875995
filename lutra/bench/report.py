"""Results as a Markdown table, JSON or CSV, each with the machine and the command, so that it can be quoted."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lutra import __version__, machine

OUTPUTS = ("table", "json", "csv")


class Result(Protocol):
    """What can be printed: heading → text for people, name → number for programs."""

    def cells(self) -> dict[str, str]: ...

    def numbers(self) -> dict[str, Any]: ...


def machine_line() -> str:
    """CPU, instruction set, cores and versions, in a line."""
    return (
        f"{machine.cpu_name()} ({platform.machine()}, {machine.isa()}), {machine.usable_cores()} cores, "
        f"lutra {__version__}, Python {platform.python_version()}"
    )


def render(results: Sequence[Result], output: str, command: str) -> str:
    """All results, in one of OUTPUTS, after the machine and the command that printed them."""
    about = {"machine": machine_line(), "command": command}
    if output == "json":
        return json.dumps({**about, "rows": [result.numbers() for result in results]}, indent=1)
    if output == "csv":
        return to_csv([{**about, **result.numbers()} for result in results])
    return "\n".join([*about.values(), "", to_table([result.cells() for result in results])])


def to_table(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table with aligned columns: text to the left, numbers to the right."""
    headings = _headings(rows)
    texts = [headings, *([row.get(name, "") for name in headings] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    is_text = [any(row[i][:1].isalpha() for row in texts[1:]) for i in range(len(headings))]
    rule = ["-" * width if text else "-" * (width - 1) + ":" for width, text in zip(widths, is_text, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if t else c.rjust(w) for c, w, t in zip(cells, widths, is_text, strict=True)]
        return "| " + " | ".join(padded) + " |"

    return "\n".join([line(texts[0]), line(rule), *map(line, texts[1:])])


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line of names, then a line a row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _headings(rows), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def _headings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of all rows, in the order in which they first appear."""
    return list({name: None for row in rows for name in row})
