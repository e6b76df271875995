"""Quantised Hugging Face folders: how each method stores a linear, as one table, and the door to it.

A linear is several tensors with one prefix: "model.layers.0.mlp.up_proj" + ".qweight", ".scales", ...  A layout says
which, which shape they come to, and what they mean.  What config.json claims is used only where the tensors themselves
do not say it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lutra.errors import FileError, FormatError
from lutra.files.door import shown
from lutra.formats.qtensor import QTensor
from lutra.formats.sidecars import Adapted

SCALES = (np.float16, np.float32)  # what formats/ stores of them
DAMAGED = "the file is damaged, or config.json belongs to another model"

Parts = Mapping[str, np.ndarray]  # suffix → values as stored, mapped
Weight = np.ndarray | QTensor | Adapted


@dataclass(frozen=True)
class Layout:
    """One way to store a linear.

    name       for `lutra inspect model`
    needs      suffixes that every linear of this layout has
    takes      suffixes that it may have besides
    shape      of the stored tensors → (N, K), read or not; raises FormatError where they contradict each other
    read       of the stored tensors → the weight
    recoded    what `read` changes, in words
    """

    name: str
    needs: tuple[str, ...]
    takes: tuple[str, ...]
    shape: Callable[[Parts], tuple[int, int]]
    read: Callable[[Parts], Weight]
    recoded: str = "re-coded (lossless)"


Chooser = Callable[[dict[str, Any]], tuple[Layout, ...]]  # quantization_config → the layouts its linears may have


def refuse(field: str, expected: str, got: object, do: str) -> FileError:
    """Word the error for a quantization_config that is not understood."""
    return FileError(f"config.json: quantization_config: {field}: expected {expected}, got {shown(got)}; {do}")


def option(config: dict[str, Any], name: str, values: tuple[Any, ...], default: Any = None) -> Any:
    """Read one key of a quantization_config.

    raises   FileError   a value that is not one of `values`, types included
    """
    value = config.get(name, default)
    if not any(type(value) is type(known) and value == known for known in values):
        raise refuse(name, f"one of {', '.join(map(str, values))}", value, "convert the model to GGUF")
    return value


def matrix(parts: Parts, name: str, *dtypes: Any) -> tuple[int, int]:
    """The sizes of a part.  Raises FormatError unless it is a matrix with something in it, of one of the dtypes."""
    values = parts[name]
    if values.ndim != 2 or not values.size or values.dtype not in dtypes:
        raise FormatError(f"{name}: expected a matrix of {' or '.join(str(np.dtype(dtype)) for dtype in dtypes)}, got "
                          f"{values.dtype} {values.shape}; {DAMAGED}")  # fmt: skip
    return values.shape[0], values.shape[1]


def linear_of(name: str, layouts: tuple[Layout, ...]) -> tuple[str, str] | None:
    """Split "prefix.suffix" where some layout has the suffix; the longest wins."""
    suffixes = {suffix for layout in layouts for suffix in (*layout.needs, *layout.takes)}
    ends = [suffix for suffix in suffixes if name.endswith("." + suffix)]
    if not ends:
        return None
    suffix = max(ends, key=len)
    return name[: -len(suffix) - 1], suffix


def layout_of(suffixes: set[str], layouts: tuple[Layout, ...]) -> Layout | None:
    """The layout all of whose needs are there, and nothing it does not take; None where a linear is not quantised."""
    for layout in layouts:
        if suffixes >= set(layout.needs) and suffixes <= {*layout.needs, *layout.takes}:
            return layout
    return None
