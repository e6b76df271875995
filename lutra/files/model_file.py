"""What a model file is once it is open: metadata, and tensors that are read when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lutra.formats.qtensor import QTensor
from lutra.formats.sidecars import Adapted
from lutra.formats.vectors import VectorWeight

Tensor = np.ndarray | QTensor | Adapted | VectorWeight


@dataclass(frozen=True)
class LazyTensor:
    """One tensor of a model file; `read` delivers it, nothing is read before.

    name         lutra's name, "layers.0.q"         source_name   the file's name, "blk.0.attn_q.weight"
    stored_type  "Q4_0", "BF16", "bitnet-u8"        shape         true sizes; matrices are (N, K), out before in
    recoded      what `read` changes, in words: "as stored", "re-coded to planes4-g32 (lossless)"
    """

    name: str
    source_name: str
    stored_type: str
    shape: tuple[int, ...]
    recoded: str
    load: Callable[[], Tensor] = field(repr=False, compare=False)

    def read(self) -> Tensor:
        """Return the values: a mapped, read-only array for dense types, a QTensor for quantised ones, Adapted with
        side-cars, a VectorWeight for vectors.

        raises   FileError    the stored values have no meaning (a scale that is not finite, an unused code)
        """
        return self.load()


@dataclass(frozen=True)
class ModelFile:
    """An open model.

    path      what was opened: a .gguf file, a folder, a .safetensors file, or a .lutra file
    kind      "gguf" | "safetensors" | "packed"
    metadata  GGUF key-values as Python values, the parsed config.json, or the header of a packed file
    tensors   by lutra's names (names.py); arrays of a packed file by those of model/packed.py
    unknown   stored tensors that names.py has no name for: reported, never read
    """

    path: Path
    kind: str
    metadata: dict[str, Any]
    tensors: Mapping[str, LazyTensor]
    unknown: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where files that belong to the model lie beside it (tokenizer.json)."""
        return self.path if self.path.is_dir() else self.path.parent
