"""A widened model computes what the narrow one does."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lutra.engine.llm import LLM

FOLDER = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def widen(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("gguf")
    monkeypatch.syspath_prepend(FOLDER)
    import widen as module

    return module


def test_shares_of_copies_add_up(widen: ModuleType) -> None:
    columns = np.array([[1.0, -2.0], [3.0, 4.0]])
    wide = widen.split(np.random.default_rng(0), columns, [np.array([0, 2]), np.array([1])])
    assert wide[:, 0] + wide[:, 2] == pytest.approx(columns[:, 0]) and np.array_equal(wide[:, 1], columns[:, 1])
    assert wide[0, 0] != wide[0, 2]


def test_the_story_model_keeps_its_text(widen: ModuleType, shared: Path, tmp_path: Path) -> None:
    source = shared / "data/models/stories260K/stories260Ktok512.gguf"
    widen.write(source, tmp_path / "wide.gguf")
    text = (shared / "data/text/tinystories_sample/tinystories_197k.txt").read_text("utf-8")[:3000]
    narrow, wide = (LLM.load(path, threads=1) for path in (source, tmp_path / "wide.gguf"))
    shapes = [t.shape for name, t in wide.model.file.tensors.items() if len(t.shape) == 2]
    assert all(k % widen.BLOCK == 0 for _, k in shapes) and wide.config.num_heads == 32
    assert wide.perplexity(text) == pytest.approx(narrow.perplexity(text), rel=1e-4)
