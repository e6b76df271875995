"""The kernel cache: readable, reused by the next process, and never trusted when damaged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lutra.compiler import jit
from lutra.compiler.kernel import kernel
from lutra.compiler.language import Pointer, f32, i64, load, store
from lutra.errors import LutraError

_PROGRAM = """
import numpy as np
from lutra.compiler import jit
from lutra.compiler.kernel import kernel
from test_jit import triple
built = []
original = jit.build
jit.build = lambda *a: built.append(a) or original(*a)
x = np.arange(32, dtype=np.float32)
triple.run({"x": x}, 2, "portable", lanes=16)
assert x[31] == 93
print(len(built))
"""


@kernel
def triple(x: Pointer[f32], task: i64, *, lanes):
    """Multiply by three."""
    store(x, task * lanes, load(x, task * lanes, lanes) * 3.0)


def _run(folder: Path) -> int:
    root = Path(__file__).parents[2]
    env = {**os.environ, "LUTRA_CACHE": str(folder), "PYTHONPATH": f"{root}{os.pathsep}{Path(__file__).parent}"}
    out = subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=env, cwd=root, capture_output=True, text=True, check=True
    )
    return int(out.stdout)


def test_a_second_process_compiles_nothing_and_a_damaged_object_is_replaced(tmp_path):
    assert _run(tmp_path) == 1
    assert _run(tmp_path) == 0
    (folder,) = (path for path in tmp_path.iterdir() if path.name.startswith("triple"))
    code = folder / "kernel.o"
    code.write_bytes(code.read_bytes()[:-40])
    assert _run(tmp_path) == 1
    assert _run(tmp_path) == 0


def test_every_stage_can_be_read():
    compiled = triple.compile("portable", lanes=4)
    assert "mul(" in compiled.text("ir") and "fmul <4 x float>" in compiled.text("llvm")
    assert compiled.symbol in compiled.text("asm")
    meta = json.loads(compiled.text("meta"))
    assert meta["static"] == {"lanes": "4"} and meta["compile_ms"] > 0
    assert meta["cost"] == [{"where": "task", "load_bytes": 16, "store_bytes": 16, "lane_ops": 4 + 2}]


def test_specialisation_and_instruction_set_have_their_own_code():
    folders = {triple.compile("portable", lanes=n).folder for n in (4, 8)}
    assert len(folders) == 2


def test_a_cache_of_somebody_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(LutraError, match="belongs to another user; set LUTRA_CACHE"):
        jit.cache_folder.__wrapped__()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="the system has no owners and modes")
def test_a_cache_that_anybody_may_write_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path))
    tmp_path.chmod(0o777)
    with pytest.raises(LutraError, match="only you can write, got .*; run chmod o-w on it"):
        jit.cache_folder.__wrapped__()


def test_the_key_covers_the_tables_of_formats_that_kernels_unroll(tmp_path, monkeypatch):
    for name in ("compiler", "formats", "kernels"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text("FIELDS = 1")
    monkeypatch.setattr(jit, "__file__", str(tmp_path / "compiler" / "jit.py"))

    def digest() -> str:
        return jit.sources_digest.__wrapped__(str(tmp_path / "kernels"))

    found = [digest()]
    for name in ("compiler", "formats", "kernels"):
        (tmp_path / name / "a.py").write_text("FIELDS = 2")
        found.append(digest())
    assert len(set(found)) == 4


def test_results():
    x = np.arange(8, dtype=np.float32)
    triple.run({"x": x}, 2, lanes=4)
    assert x.tolist() == [0, 3, 6, 9, 12, 15, 18, 21]
