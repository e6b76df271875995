"""Typed reading of a model file's metadata: every value is checked here, once, before anything is computed from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lutra.errors import FileError
from lutra.files.door import parse_object, refusal, shown

MAX_SIDE_FILE_BYTES = 1 << 24  # config files are kilobytes; tokenizer.json is not read through here
COMPLETE = "use a model whose config is complete"


class Fields:
    """Named values of one file, refused with the file's and the field's name where they do not fit.

    A missing value and null are the same, as in config.json; but a number that is null is refused.
    """

    def __init__(self, path: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        self.path = path
        self.values = values
        self.prefix = prefix

    def refuse(self, key: str, expected: str, got: object, do: str = COMPLETE) -> FileError:
        shown_got = "nothing" if got is None else shown(got)
        return refusal(self.path, self.prefix + key, expected, shown_got, do)

    def get(self, key: str) -> Any:
        """Return the value as it is, None if it is missing."""
        return self.values.get(self.prefix + key)

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """Return an int from low to high.  raises FileError."""
        value = self.get(key)
        if value is None and default is not None:
            value = default
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]  # GGUF may state a number per layer; lutra's layers are alike
        if type(value) is not int or not low <= value <= high:
            raise self.refuse(key, f"an integer from {low} to {high}", value)
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """Return a finite float from low to high.  raises FileError."""
        value = self.values.get(self.prefix + key, default)
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            raise self.refuse(key, f"a number from {low:g} to {high:g}", value)
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return a bool.  raises FileError."""
        value = self.get(key)
        if value is None:
            return default
        if type(value) is not bool:
            raise self.refuse(key, "true or false", value)
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string.  raises FileError."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.refuse(key, "text", value)
        return value

    def require(self, key: str, allowed: tuple[Any, ...], do: str) -> None:
        """Refuse a model that asks for something lutra does not compute.  raises FileError."""
        value = self.get(key)
        if value is not None and value not in allowed:
            raise self.refuse(key, " or ".join(map(repr, allowed)), value, do)


def side_file(folder: Path, name: str) -> Fields | None:
    """Read a small JSON object that lies beside a model, such as generation_config.json; None if there is none.

    raises   FileError    larger than 16 MiB, unreadable, or not one JSON object
    """
    text = side_text(folder, name)
    return None if text is None else Fields(folder / name, parse_object(folder / name, "file", text))


def side_text(folder: Path, name: str) -> bytes | None:
    """Read a small file that lies beside a model; None if there is none.  raises FileError as side_file."""
    path = folder / name
    try:
        with path.open("rb") as file:
            text = file.read(MAX_SIDE_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refusal(path, "file", "a file that can be read", error.strerror or "an error", "check the path") from None
    if len(text) > MAX_SIDE_FILE_BYTES:
        raise refusal(path, "file", f"at most {MAX_SIDE_FILE_BYTES} bytes", "more", "get it from its source again")
    return text
