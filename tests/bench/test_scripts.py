"""The scripts of bench/: a random GGUF file is read back, and the tables are made of a tiny model."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lutra.errors import RequestError
from lutra.files import open_model
from lutra.formats.qtensor import QTensor
from lutra.model.config import config_from
from lutra.model.random import random_config

FOLDER = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def make_gguf(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("gguf")
    monkeypatch.syspath_prepend(FOLDER)
    import make_gguf as module

    return module


def small_config() -> Any:
    """Every row a whole number of the largest blocks, 256."""
    sizes = {"hidden_size": 256, "ffn_size": 512, "num_layers": 2, "vocab_size": 300}
    return replace(random_config("tiny", activation="silu"), **sizes)


@pytest.mark.parametrize(
    ("kind", "format"),
    [("Q4_0", "planes4-g32"), ("Q8_0", "int8-g32"), ("TQ1_0", "ternary-g256"), ("TQ2_0", "ternary-g256"),
     ("Q2_K", "planes2-g16-mins-u8xf16"), ("Q6_K", "planes6-g16-i8xf16")],
)  # fmt: skip
def test_lutra_reads_the_file_back(make_gguf: ModuleType, tmp_path: Path, kind: str, format: str) -> None:
    config, path = small_config(), tmp_path / "random.gguf"
    make_gguf.write(path, config, kind)
    file = open_model(path)
    found = config_from(file)
    for field in (
        "hidden_size",
        "ffn_size",
        "num_layers",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "vocab_size",
        "tied",
    ):
        assert getattr(found, field) == getattr(config, field), field
    weight = file.tensors["layers.1.down"].read()
    assert isinstance(weight, QTensor) and weight.format.name == format and weight.shape == (256, 512)
    values = weight.dequantize()
    assert np.isfinite(values).all() and values.std() > 0
    assert (file.tensors["final_norm"].read() == 1).all()


def test_rows_that_are_no_whole_blocks_are_refused(make_gguf: ModuleType) -> None:
    for kind in ("Q4_0", "Q2_K"):
        with pytest.raises(RequestError, match="expected rows of a multiple of"):
            make_gguf.random_rows(np.random.default_rng(0), 2, 688, kind)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=FOLDER.parent, capture_output=True, text=True)


def test_a_curve_is_printed_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "pictures" / "curve.png"
    words = ["--shape", "tiny", "--rows", "1,2", "--prompt", "4", "--rounds", "1", "--threads", "1"]
    done = run("bench/batch_curve.py", *words, "--formats", "ternary", "--picture", str(picture))
    assert done.returncode == 0, done.stderr
    assert "ternary mad, 1 threads: " in done.stdout
    assert done.stdout.count("| tiny ") == 2 and picture.read_bytes().startswith(b"\x89PNG")


def test_what_stands_between_matmuls_is_printed() -> None:
    done = run("bench/between.py", "--shape", "tiny", "--rounds", "2", "--threads", "1,2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| whole layers ") == done.stdout.count("| matmuls alone ") == 2


def test_speedups_are_printed_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "speedup.png"
    words = ["--shape", "tiny", "--rows", "1,2", "--rounds", "1", "--threads", "1", "--picture", str(picture)]
    done = run("bench/speedup.py", *words, "--formats", "ternary:mad,ternary:lut")
    assert done.returncode == 0, done.stderr
    assert "f16 tok/s | ternary mad | ternary lut |" in done.stdout and "1 threads, ternary lut: " in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("script", ["decode", "prefill"])
def test_a_missing_rival_is_one_line(script: str) -> None:
    done = run(f"bench/{script}.py", "--shape", "tiny", "--rival", "nowhere", "--rival-model", "nowhere")
    assert done.returncode == 1 and done.stderr.startswith("error: nowhere: expected a file")
