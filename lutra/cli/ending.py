"""Names of files that `lutra quantize` does not write, and the command that does."""

from collections.abc import Sequence
from pathlib import Path

from lutra.errors import RequestError

OTHERS = {".gguf": "export", ".lutra": "pack"}  # endings → commands


def check_ending(out: str, names: Sequence[str]) -> None:
    """Name the command that writes such a file, if it takes the formats.  Raises RequestError; FormatError."""
    path = Path(out)
    if path.suffix not in OTHERS:
        return
    between, command = path.with_suffix(".safetensors"), OTHERS[path.suffix]
    do = f"quantize to {between.name}, then: lutra {command} {between} {path}"
    if command == "export":
        do = _refusal(names) or do
    raise RequestError(f"expected a file name that ends in .safetensors, got {path.name!r}; {do}")


def _refusal(names: Sequence[str]) -> str | None:
    """What to say of formats that `lutra export` refuses, None if it takes all."""
    from lutra.files.blocks_write import WRITABLE
    from lutra.model.recipe import find
    from lutra.model.to_gguf import takes

    refused = next((name for name in names if not takes(find(name))), None)
    if refused is None:
        return None
    taken = ", ".join(name for name, form in WRITABLE.items() if takes(form))
    return f"lutra export does not take {refused} as lutra quantize makes it; to export, quantize to one of {taken}"
