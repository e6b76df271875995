"""Arrows point one way: which part of lutra may import which, and which may import what from outside."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "lutra"

# part of lutra: the parts it may import besides itself
MAY_IMPORT = {
    "errors": "", "fused": "", "debug": "errors", "machine": "compiler debug errors",
    "formats": "errors fused",
    "files": "errors formats", "quantize": "errors formats", "hardware": "errors formats",
    "train": "errors formats files",
    "compiler": "debug errors fused",
    "kernels": "compiler debug errors formats fused machine",
    # the compiler, because program.py is made of its launches
    "model": "compiler debug errors files formats kernels quantize machine",
    "engine": "debug errors model machine", "server": "debug errors engine", "cluster": "debug errors engine server",
    "bench": "compiler debug errors formats kernels machine model",
    "cli": "everything",
    "lutra": "errors engine",                                            # lutra/__init__.py, the public names
}

# part of lutra: the packages it may import besides Python's own
OUTSIDE = {
    "errors": "", "debug": "", "lutra": "", "fused": "numpy",
    "formats": "numpy ml_dtypes", "files": "numpy ml_dtypes gguf",
    "quantize": "numpy ml_dtypes", "hardware": "numpy amaranth",
    "compiler": "numpy ml_dtypes llvmlite", "kernels": "numpy ml_dtypes", "machine": "numpy llvmlite",
    "model": "numpy ml_dtypes tokenizers jinja2", "engine": "numpy lm_eval", "bench": "numpy",
    "server": "numpy fastapi uvicorn", "cluster": "ray",
    "train": "numpy ml_dtypes torch tokenizers safetensors matplotlib",
    "cli": "click rich huggingface_hub tqdm",
}


def part_of(path: Path) -> str:
    """Name the row of the table that a file belongs to: its folder, or its own name."""
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if first in ("__init__", "__main__"):
        return "lutra" if first == "__init__" else "cli"
    return first


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every import of a module, also those inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield node.lineno, name.value


def complaints(path: Path) -> Iterator[str]:
    """Yield "file:line: why" for each import that the tables do not allow."""
    part, where = part_of(path), path.relative_to(ROOT.parent)
    if part not in MAY_IMPORT:
        yield f"{where}:1: {part} has no row in MAY_IMPORT; give it one"
        return
    package = ".".join(path.relative_to(ROOT.parent).parent.parts)
    for line, name in imports(path.read_text("utf-8"), package):
        top, *rest = name.split(".")
        if top != "lutra":
            if top not in sys.stdlib_module_names and top not in OUTSIDE[part].split():
                yield f"{where}:{line}: {part} may import {OUTSIDE[part] or 'nothing'} from outside, not {top}"
        elif is_part(target := rest[0] if rest else "lutra"):
            if MAY_IMPORT[part] != "everything" and target not in (part, *MAY_IMPORT[part].split()):
                yield f"{where}:{line}: {part} may import {MAY_IMPORT[part] or 'nothing'}, not {target}"


def is_part(name: str) -> bool:
    """Tell a part of lutra from a name inside lutra/__init__.py."""
    return (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file()


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_one_way(path: Path) -> None:
    assert not set(complaints(path))


def test_the_table_has_no_cycle() -> None:
    order: list[str] = []
    while len(order) < len(MAY_IMPORT) - 1:
        ready = [part for part in MAY_IMPORT if part not in order and set(MAY_IMPORT[part].split()) <= set(order)]
        assert ready or set(MAY_IMPORT) - set(order) == {"cli"}, f"a cycle among {set(MAY_IMPORT) - set(order)}"
        order += ready


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import lutra.engine.llm", ["lutra.engine.llm"]),
        ("def f():\n    from lutra import engine", ["lutra.engine"]),
        ("from . import trace", ["lutra.formats.trace"]),
        ("from .. import engine", ["lutra.engine"]),
        ("from ..engine.llm import LLM", ["lutra.engine.llm.LLM"]),
        ("import importlib\nimportlib.import_module('lutra.engine')", ["importlib", "lutra.engine"]),
    ],
)
def test_every_way_to_import_is_seen(source: str, names: list[str]) -> None:
    assert [name for _, name in imports(source, "lutra.formats")] == names


def test_a_forbidden_import_is_named_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path / "lutra")
    path = tmp_path / "lutra" / "formats" / "wrong.py"
    path.parent.mkdir(parents=True)
    (tmp_path / "lutra" / "engine").mkdir()
    path.write_text("import numpy\n\ndef f():\n    from lutra.engine import llm\n    import torch\n")
    assert list(complaints(path)) == [
        "lutra/formats/wrong.py:4: formats may import errors fused, not engine",
        "lutra/formats/wrong.py:5: formats may import numpy ml_dtypes from outside, not torch",
    ]
