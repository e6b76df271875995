"""Input that is broken, through the command line: what all those tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.files import gguf_writer, make_models
from tests.files.gguf_writer import write_gguf

RUN = ["--max-tokens", "2", "--threads", "1", "--temperature", "0"]


def run(model: Path, *words: str) -> list[str]:
    return ["run", *RUN, "-m", str(model), *(words or ("Hi",))]


def assert_one_error(code: int, out: str, err: str, *fragments: str) -> None:
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err, err
    assert len(err) < 1000
    for fragment in fragments:
        assert fragment in err, err


Tensors = dict[str, tuple[str, np.ndarray]]  # by name: type and values
Spoil = Callable[[dict[str, Any], Tensors], Any]


def gguf_parts(quant: str = "F32") -> tuple[dict[str, Any], Tensors]:
    """Metadata and tensors of a model that runs."""
    rng, sizes = np.random.default_rng(0), make_models.Sizes()
    tensors: Tensors = {}
    for name, values in make_models.random_state(rng, "llama", sizes).items():
        if quant != "F32" and "_proj" in name:
            tensors[make_models.gguf_name(name)] = quant, gguf_writer.random_blocks(rng, quant, *values.shape)
        else:
            tensors[make_models.gguf_name(name)] = "F32", values
    return make_models.gguf_metadata("llama", sizes), tensors


def spoilt_gguf(path: Path, spoil: Spoil, quant: str = "F32") -> Path:
    metadata, tensors = gguf_parts(quant)
    spoil(metadata, tensors)
    return write_gguf(path, metadata, [(name, kind, values) for name, (kind, values) in tensors.items()])


def put(key: str, value: Any) -> Spoil:
    return lambda metadata, _: metadata.__setitem__(key, value)


def drop(key: str) -> Spoil:
    return lambda metadata, tensors: tensors.pop(key) if key in tensors else metadata.pop(key)


def tensor(name: str, *shape: int, fill: float = 0.0) -> Spoil:
    return lambda _, tensors: tensors.__setitem__(name, ("F32", np.full(shape, fill, np.float32)))


def nan_scale(_: dict[str, Any], tensors: Tensors) -> None:
    tensors["blk.1.ffn_up.weight"][1][7, 1, :2] = np.float16("nan").reshape(1).view(np.uint8)
