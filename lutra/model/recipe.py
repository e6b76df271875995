"""What `lutra quantize` is asked for: a format for every weight, and the method that writes it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from lutra.errors import RequestError
from lutra.files.door import parse_object
from lutra.files.names import LINEARS
from lutra.formats import catalog, vectors
from lutra.formats.format import Format
from lutra.formats.vectors import VectorFormat
from lutra.model.config import ModelConfig
from lutra.model.fields import side_text
from lutra.quantize.methods import METHODS

AS_STORED = "as-stored"
ERROR_FEEDBACK, SCALED = "gptq", "awq"  # the methods that look at calibration text
ALIASES = {"hlq-gptq": "gptq+hlq"}


@dataclass(frozen=True)
class Recipe:
    """How to quantise a model.

    format           name of the format of the layers' weights
    method           words joined by +: gptq or awq, and a row of methods.METHODS; None for what suits each format.  A
                     format that the row cannot write is written by one that can
    keep             (pattern of weight names, name of a format or as-stored), the last that fits counts
    head             format of the head, None for as stored; the embedding stays as stored
    windows, length  calibration: so many windows of so many tokens
    damp, act_order, static_groups   of GPTQ
    sequential       calibrate on what the quantised layers before put out, not the float ones
    lorc             rank of the low-rank term that LoRC puts beside every quantised weight of the layers, 0 for none
    """

    format: str
    method: str | None = None
    keep: tuple[tuple[str, str], ...] = ()
    head: str | None = None
    windows: int = 64
    length: int = 512
    damp: float = 0.01
    act_order: bool = False
    static_groups: bool = False
    sequential: bool = False
    lorc: int = 0

    def __post_init__(self) -> None:
        """Raise RequestError for a number that is none."""
        if not (math.isfinite(self.damp) and self.damp >= 0):
            raise RequestError(f"expected a damping of 0 or more, got {self.damp:g}; change --damp")

    def words(self) -> list[str]:
        """The method's words, checked.  Raises RequestError for one there is not."""
        words = ALIASES.get(self.method or "", self.method or "").split("+") if self.method else []
        known = [ERROR_FEEDBACK, SCALED, *METHODS]
        wrong = next((word for word in words if word not in known), None)
        bases = [word for word in words if word in METHODS]
        if wrong is not None or len(bases) > 1 or len(words) - len(bases) > 1:
            raise RequestError(
                f"expected a method of {', '.join(known)}, or gptq or awq with another as gptq+clip, got "
                f"{self.method!r}; change --method"
            )
        if SCALED in words and self.sequential:
            raise RequestError("expected float inputs for awq, which scales a layer as a whole, got --sequential; "
                               "leave it out, or take gptq")  # fmt: skip
        return words

    @property
    def calibrated(self) -> str | None:
        """gptq, awq or None."""
        return next((word for word in self.words() if word not in METHODS), None)

    @property
    def base(self) -> str | None:
        """The row of METHODS that is preferred; AWQ cuts ranges in a way of its own."""
        if self.calibrated == SCALED and "clip" in self.words():
            return "rtn"
        named = next((word for word in self.words() if word in METHODS), None)
        return named if named is not None or self.calibrated is None else "rtn"


def plan(recipe: Recipe, config: ModelConfig) -> dict[str, Format | VectorFormat | None]:
    """Give every weight of the layers its format, None for as stored; and the head, if it is to change.

    raises   FormatError    a format there is not
             RequestError   a pattern that fits no weight, gate and up of a layer in two formats
    """
    recipe.words()
    usual = find(recipe.format)
    names = [f"layers.{index}.{part}" for index in range(config.num_layers) for part in LINEARS]
    formats = dict.fromkeys(names, usual)
    for pattern, wanted in recipe.keep:
        fitting = [name for name in names if fnmatchcase(name, pattern)]
        if not fitting:
            raise RequestError(f"expected a pattern of weights as layers.*.down, got {pattern!r}, which fits none of "
                               f"{names[0]} to {names[-1]}; change it")  # fmt: skip
        formats |= dict.fromkeys(fitting, find(wanted))
    for index in range(config.num_layers):
        gate, up = formats[f"layers.{index}.gate"], formats[f"layers.{index}.up"]
        if gate != up:
            raise RequestError(
                f"expected one format for gate and up of layer {index}, which run as one weight, got "
                f"{gate.name if gate else AS_STORED} and {up.name if up else AS_STORED}; give both the same"
            )
    if recipe.head is not None:
        formats["head"] = find(recipe.head)
    if any(isinstance(format, VectorFormat) for format in formats.values()) and (
        recipe.calibrated == SCALED or recipe.lorc
    ):
        raise RequestError("expected a format with levels for awq and lorc, got vectors; take gptq+vptq alone")
    if isinstance(formats.get("head"), VectorFormat):
        raise RequestError(f"expected a format with levels for the head, got {recipe.head}; try int8-g32")
    return formats


def find(name: str) -> Format | VectorFormat | None:
    """The format of a name; None for as-stored.  Raises FormatError."""
    return None if name == AS_STORED else vectors.find(name) or catalog.find(name)


def parse_keep(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Split PATTERN=FORMAT.  Raises RequestError for a text without =."""
    pairs = [text.partition("=") for text in texts]
    wrong = next(("".join(pair) for pair in pairs if not (pair[0] and pair[2])), None)
    if wrong is not None:
        raise RequestError(f"expected PATTERN=FORMAT, as layers.*.down=planes4-g32, got {wrong!r}; change --keep")
    return tuple((pattern, wanted) for pattern, _, wanted in pairs)


def read_allocation(path: Path) -> tuple[tuple[str, str], ...]:
    """Read {weight name: format} from JSON, as bit allocation writes it; its other keys begin with _.

    raises   FileError      no file, not such JSON
             RequestError   a value that is no text
    """
    text = side_text(path.parent, path.name)
    if text is None:
        raise RequestError(f"expected a file of formats, got {path}, which is not there; check the path")
    stated: Mapping[str, object] = parse_object(path, "file", text)
    found = {name: value for name, value in stated.items() if not name.startswith("_")}
    wrong = next((name for name, value in found.items() if not isinstance(value, str)), None)
    if wrong is not None:
        raise RequestError(f"{path}: expected the name of a format for {wrong}, got {json.dumps(found[wrong])[:40]}")
    return tuple((name, str(value)) for name, value in found.items())
