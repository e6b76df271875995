"""Perplexity of an exported model: uniform logits give the vocabulary size."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'lutra[train]'")

from lutra.train import evaluate  # noqa: E402


def test_uniform_logits_give_the_vocabulary_size() -> None:
    model = SimpleNamespace(logits=lambda ids: torch.zeros(len(ids), 50))
    assert evaluate.perplexity(model, np.ones((3, 9), np.uint16)) == pytest.approx(50)


def test_certainty_gives_one() -> None:
    model = SimpleNamespace(logits=lambda ids: torch.eye(50)[torch.tensor(ids) + 1] * 1e4)
    assert evaluate.perplexity(model, np.arange(9, dtype=np.uint16)[None]) == pytest.approx(1)
