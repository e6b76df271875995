"""How far each linear of one model is from the same of another: a table, worst first where asked.

The inputs are those of the reference, so errors do not pile up from layer to layer: a row says what this weight does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from lutra.errors import RequestError
from lutra.files.model_file import ModelFile
from lutra.formats.sidecars import Adapted
from lutra.model.config import ModelConfig
from lutra.model.inputs import HEAD, units
from lutra.model.load import Model, Progress, Reader
from lutra.model.weights import Matrix, widen


@dataclass(frozen=True)
class LayerError:
    """Of one tensor: |x (A - B).T| / |x A.T| and |A - B| / |A| in the Frobenius norm, and how both are stored."""

    name: str
    output: float
    weight: float
    formats: tuple[str, str]

    def cells(self) -> dict[str, str]:
        """Heading → text of a table."""
        return {
            "tensor": self.name,
            "A": self.formats[0],
            "B": self.formats[1],
            "output error": f"{100 * self.output:.3f} %",
            "weight error": f"{100 * self.weight:.3f} %",
        }


def sizes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(N, K) of every linear by the last part of its name, and of the head."""
    c = config
    queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    return {
        "q": (queries, c.hidden_size), "k": (keys, c.hidden_size), "v": (keys, c.hidden_size),
        "o": (c.hidden_size, queries), "gate": (c.ffn_size, c.hidden_size), "up": (c.ffn_size, c.hidden_size),
        "down": (c.hidden_size, c.ffn_size), "head": (c.vocab_size, c.hidden_size),
    }  # fmt: skip


def check_is_unpacked(file: ModelFile) -> None:
    """Raise RequestError for a packed file: its weights are laid out for kernels."""
    if file.kind == "packed":
        raise RequestError(f"expected a model of named tensors, got {file.path}, which is packed; name its source")


def matrix(reader: Reader, name: str) -> Matrix:
    """A linear as the model computes with it; the embedding where the head is tied to it."""
    n, k = sizes(reader.config)[name.split(".")[-1]]
    is_tied = name == HEAD and HEAD not in reader.file.tensors
    return reader.matrix("embed" if is_tied else name, n, k)


def format_name(weight: Matrix) -> str:
    """A format's name, or the element type of floats."""
    if isinstance(weight, Adapted):
        return format_name(weight.weight) + " +"
    return str(weight.dtype) if isinstance(weight, np.ndarray) else weight.format.name


def check_alike(reference: Model, other: Model) -> None:
    """Raise RequestError for packed files and for models of different sizes."""
    for model in (reference, other):
        check_is_unpacked(model.file)
    if (found := [sizes(model.config) for model in (reference, other)])[0] != found[1]:
        raise RequestError("expected two models of the same sizes, got different ones; compare a model with its own")


def layer_errors(
    reference: Model, other: Model, inputs: Mapping[str, np.ndarray], progress: Progress | None = None
) -> Iterator[LayerError]:
    """Compare every linear and the head.

    inputs   of `inputs.collect` with the reference
    Raises as check_alike.
    """
    check_alike(reference, other)
    readers = [Reader(model.file, model.config, set()) for model in (reference, other)]
    named = [(unit, name) for unit, names in units(reference.config).items() for name in names] + [(HEAD, HEAD)]
    for index, (unit, name) in enumerate(named):
        pair = [matrix(reader, name) for reader in readers]
        a, b = (widen(each) for each in pair)
        x = inputs[unit]
        output = _ratio(x @ (a - b).T, x @ a.T)
        yield LayerError(name, output, _ratio(a - b, a), (format_name(pair[0]), format_name(pair[1])))
        if progress is not None:
            progress(f"comparing {name}", index + 1, len(named))


def _ratio(error: np.ndarray, signal: np.ndarray) -> float:
    norm = float(np.linalg.norm(signal))
    return float(np.linalg.norm(error)) / norm if norm else 0.0
