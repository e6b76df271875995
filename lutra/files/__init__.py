"""Model files on disk: `open_model` gives metadata and named tensors, mapped into memory."""

from __future__ import annotations

import os
from pathlib import Path

from lutra.files import gguf, packed, safetensors, saved
from lutra.files.door import refusal
from lutra.files.model_file import LazyTensor, ModelFile

__all__ = ["LazyTensor", "ModelFile", "open_model"]

WHAT_TO_GIVE = "give a .gguf file, a .lutra file, a .safetensors file beside its config.json, or a Hugging Face folder"


def _open_safetensors(path: Path) -> ModelFile:
    """A file that says what it is, or one of those that config.json beside them explains."""
    return saved.open(path) if saved.is_saved(path) else safetensors.open(path)


OPENERS = {".gguf": gguf.open, ".safetensors": _open_safetensors, packed.SUFFIX: packed.open}  # by suffix


def open_model(path: str | Path) -> ModelFile:
    """Open a model by its path: a GGUF file, a file of ours, a Hugging Face folder, or a .safetensors file of one.

    raises   FileError    nothing there, another kind of file, or a file that does not pass its format's checks
    """
    path = Path(os.path.expanduser(path))
    try:
        return _open(path)
    except OSError as error:  # a folder that may not be entered, a disk that fails
        raise refusal(path, "path", "a model that can be read", str(error.strerror), "check its permissions") from None


def _open(path: Path) -> ModelFile:
    if not os.path.exists(path):  # False, not an error, for names too long or with a zero byte
        raise refusal(path, "path", "a model", "nothing there", WHAT_TO_GIVE)
    if path.is_dir():
        return safetensors.open(path)
    if path.suffix.lower() not in OPENERS:
        raise refusal(path, "path", "a suffix of " + " or ".join(OPENERS), repr(path.suffix), WHAT_TO_GIVE)
    return OPENERS[path.suffix.lower()](path)
