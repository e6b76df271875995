"""Read emitted assembly: which instructions a kernel's innermost loops hold."""

from __future__ import annotations

import re
from collections.abc import Iterator

# Lines that execute nothing (directives, comments) start with one of these; labels end in a colon.
_SILENT = (".", "#", "//", ";", "@")
_LABEL = re.compile(r"^([.\w$]+):")
_BRANCH = re.compile(r"^(?:j\w+|b(?:\.\w+)?|cbn?z|tbn?z)\s.*?([.\w$]+)$")  # x86: jne .L; ARM: b.lt .L, cbz x0, .L


def instructions(assembly: str) -> list[tuple[str, str]]:
    """(label, text) of everything that executes, in order; the label is that of the line before, or ""."""
    found, label = [], ""
    for line in assembly.splitlines():
        text = re.split(r"\s(?:#|//)", line)[0].strip()
        if named := _LABEL.match(text):
            label = named[1]
        elif text and not text.startswith(_SILENT):
            found.append((label, text))
            label = ""
    return found


def innermost_loops(assembly: str) -> list[list[str]]:
    """The instructions of every loop that holds no other, the longest loop first.

    A loop is the stretch from a label to a branch back to it.  Whatever stands between counts, also what a condition
    jumps over.
    """
    code = instructions(assembly)
    loops = list(_stretches(code))
    inner = [(a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)]
    return sorted(([text for _, text in code[a : b + 1]] for a, b in set(inner)), key=len, reverse=True)


def _stretches(code: list[tuple[str, str]]) -> Iterator[tuple[int, int]]:
    places = {label: i for i, (label, _) in enumerate(code) if label}
    for i, (_, text) in enumerate(code):
        branch = _BRANCH.match(text)
        if branch and places.get(branch[1], i + 1) <= i:
            yield places[branch[1]], i


def count(loop: list[str]) -> dict[str, int]:
    """How often each mnemonic stands in a loop, the most frequent first.  Prefixes such as {vex} are left out."""
    names = [re.sub(r"^\{\w+\}\s*", "", text).split(None, 1)[0] for text in loop]
    return {name: names.count(name) for name in sorted(set(names), key=lambda name: (-names.count(name), name))}
