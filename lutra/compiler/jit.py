"""Machine code for kernels: LLVM, an on-disk cache that can be read, and the linker of this process.

One folder per specialised kernel holds its IR, LLVM text, object and meta.json.  The folder's name is a digest of
everything the code depends on; a second process loads the object without tracing or compiling.  Assembly takes half as
long again as the object, and is made of the LLVM text when somebody asks for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from lutra import debug
from lutra.compiler import cost, targets
from lutra.compiler.check import check
from lutra.compiler.codegen import native_machine, optimise
from lutra.compiler.emit_llvm import emit
from lutra.compiler.host import architecture
from lutra.compiler.ir import Function, to_text
from lutra.compiler.targets import PORTABLE, Target
from lutra.compiler.tidy import STAGING, tidy
from lutra.errors import LutraError


@dataclass(frozen=True)
class Compiled:
    """A kernel's machine code in this process, and the folder that shows how it came about.

    stores   names of the parameters it writes through
    """

    symbol: str
    address: int
    folder: Path
    isa: str
    stores: tuple[str, ...]

    def text(self, stage: str) -> str:
        """One of the artefacts: 'ir', 'llvm', 'asm' or 'meta'."""
        return read_stage(self.folder, stage)


STAGES = {"ir": "ir.txt", "llvm": "kernel.ll", "meta": "meta.json"}
_OBJECT = "kernel.o"


@cache
def cache_folder() -> Path:
    """The kernel cache: $LUTRA_CACHE, or `lutra/kernels` in the user's cache folder; made private to the user.

    Raises LutraError when it belongs to somebody else or anybody may write to it: its objects are executed.
    """
    user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(os.environ.get("LUTRA_CACHE") or Path(user_cache, "lutra", "kernels"))
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise _unwritable(folder, error) from None
    if hasattr(os, "getuid"):
        status = folder.stat()
        if status.st_uid != os.getuid():
            raise LutraError(f"the kernel cache {folder} belongs to another user; set LUTRA_CACHE to a folder you own")
        if status.st_mode & stat.S_IWOTH:
            raise LutraError(f"expected a kernel cache that only you can write, got {folder}; run chmod o-w on it")
    return folder


def _unwritable(folder: Path, error: OSError) -> LutraError:
    return LutraError(
        f"expected a kernel cache that can be written, got {folder} ({error.strerror}); "
        "set LUTRA_CACHE to a folder you own"
    )


@cache
def sources_digest(folder: str) -> str:
    """Digest of the sources of the compiler, the kernel package in `folder`, and formats, whose tables kernels unroll.

    A change to any of them recompiles.
    """
    compiler = Path(__file__).parent
    folders = compiler, compiler.parent / "formats", Path(folder)
    digest = hashlib.sha256()
    for path in sorted(path for folder in folders for path in folder.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def key(name: str, static: dict[str, Any], target: Target, kernel_folder: str) -> str:
    """Everything the machine code depends on, as 16 hexadecimal digits."""
    parts = [
        name,
        sorted(static.items()),
        target.isa,
        target.llvm_features,
        architecture(),  # two computers may share a home folder
        _llvm_version(),
        sources_digest(kernel_folder),
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _llvm_version() -> str:
    return f"llvmlite {llvmlite.__version__}, LLVM {'.'.join(map(str, llvm.llvm_version_info))}"


def load(name: str, digest: str, target: Target) -> Compiled | None:
    """Link a cached object, or None when there is no whole one."""
    folder = cache_folder() / f"{name}-{target.isa}-{digest}"
    found = _read_object(folder)
    if found is None:
        return None
    code, meta = found
    if not isinstance(meta.get("stores"), list):
        return None
    symbol = f"{name}_{target.isa}_{digest}"
    with contextlib.suppress(OSError):  # somebody else's cache of the same user, mounted to be read
        os.utime(folder)
    return Compiled(symbol, _link(symbol, code), folder, target.isa, tuple(meta["stores"]))


def _read_object(folder: Path) -> tuple[bytes, dict[str, Any]] | None:
    """The object of a cache folder if it is the one that meta.json describes, and what that says."""
    try:
        code = (folder / _OBJECT).read_bytes()
        meta = json.loads((folder / STAGES["meta"]).read_text())
    except (OSError, ValueError):
        return None
    is_whole = isinstance(meta, dict) and meta.get("object_sha256") == hashlib.sha256(code).hexdigest()
    return (code, meta) if is_whole else None


def build(function: Function, digest: str, target: Target) -> Compiled:
    """Compile a traced kernel, store every stage beside each other, link it."""
    check(function)
    symbol = f"{function.name}_{target.isa}_{digest}"
    text = emit(function, symbol, target)
    started = time.perf_counter()
    machine = native_machine(target)
    module = optimise(text, machine)
    code = machine.emit_object(module)
    compile_ms = (time.perf_counter() - started) * 1e3
    meta = {
        "kernel": function.name,
        "static": {name: str(getattr(value, "name", value)) for name, value in function.static.items()},
        "isa": target.isa,
        "features": sorted(target.features),
        "llvm": _llvm_version(),
        "compile_ms": round(compile_ms, 2),
        "stores": function.stores,
        "cost": cost.count(function),
        "object_sha256": hashlib.sha256(code).hexdigest(),
    }
    stages = {"ir": to_text(function), "llvm": str(module), "meta": json.dumps(meta, indent=1)}
    folder = cache_folder() / f"{function.name}-{target.isa}-{digest}"
    _store(folder, {**{STAGES[stage]: body.encode() for stage, body in stages.items()}, _OBJECT: code})
    return Compiled(symbol, _link(symbol, code), folder, target.isa, function.stores)


def read_stage(folder: Path, stage: str) -> str:
    """One of the artefacts of a kernel's folder: 'ir', 'llvm', 'asm' or 'meta'."""
    if stage != "asm":
        return (folder / STAGES[stage]).read_text("utf-8")
    target = targets.choose(json.loads(read_stage(folder, "meta"))["isa"])
    assembly: str = native_machine(target).emit_assembly(llvm.parse_assembly(read_stage(folder, "llvm")))
    return assembly


def show(compiled: Compiled) -> None:
    """Print the stages LUTRA_DEBUG asks for; works on cache hits too."""
    name = compiled.folder.name.split("-")[0]
    for stage in ("ir", "llvm", "asm"):
        if debug.enabled(stage, name):
            print(f"; {compiled.folder.name} {stage}\n{compiled.text(stage)}")


def _store(folder: Path, files: dict[str, bytes]) -> None:
    """Write all files into a new folder and move it into place; another process may win, which is fine.

    Raises LutraError where nothing can be written.
    """
    _tidy(folder.parent)
    try:
        staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=STAGING))
        for name, body in files.items():
            (staging / name).write_bytes(body)
    except OSError as error:  # not allowed, or the disk is full
        raise _unwritable(folder.parent, error) from None
    try:
        staging.rename(folder)
    except OSError:  # the folder is there: damaged, or just made by another process
        try:
            for name in files:
                os.replace(staging / name, folder / name)
            staging.rmdir()
        except OSError as error:
            raise _unwritable(folder.parent, error) from None


@cache
def _tidy(folder: Path) -> None:
    """Make room in the cache, once a process and only when it grows."""
    tidy(folder, time.time())


class Linker:
    """The one engine that maps object code into this process."""

    def __init__(self) -> None:
        machine = native_machine(PORTABLE)
        self.engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)

    def link(self, symbols: tuple[str, ...], code: bytes) -> dict[str, int]:
        """Map an object and return the addresses of its symbols."""
        self.engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self.engine.finalize_object()
        addresses = {symbol: int(self.engine.get_function_address(symbol)) for symbol in symbols}
        if not all(addresses.values()):
            raise LutraError(
                f"the kernel cache holds an object without {symbols[0]}; delete {cache_folder()} and run again"
            )
        return addresses


@cache
def _linker() -> Linker:
    return Linker()


@cache
def _link(symbol: str, code: bytes) -> int:
    return _linker().link((symbol,), code)[symbol]


def link_text(text: str, symbols: tuple[str, ...]) -> dict[str, int]:
    """Compile a hand-written LLVM module for the baseline CPU, or take it from the cache; the functions' addresses."""
    digest = hashlib.sha256((architecture() + text + _llvm_version()).encode()).hexdigest()
    folder = cache_folder() / f".runtime-{digest[:16]}"
    found = _read_object(folder)
    if found is not None:
        code = found[0]
    else:
        machine = native_machine(PORTABLE)
        code = machine.emit_object(optimise(text, machine))
        meta = json.dumps({"object_sha256": hashlib.sha256(code).hexdigest()})
        _store(folder, {STAGES["llvm"]: text.encode(), STAGES["meta"]: meta.encode(), _OBJECT: code})
    return _linker().link(symbols, code)
