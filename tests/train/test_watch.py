"""What a run shows: the log drops rows of steps that are taken again, a sample starts with its prompt."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'lutra[train]'")

from lutra.train import data, watch  # noqa: E402
from lutra.train.model import Decoder, DecoderConfig  # noqa: E402
from tests.train.test_data import corpus  # noqa: E402

TINY = DecoderConfig(vocab_size=300, hidden_size=32, ffn_size=48, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
                     max_context=32)


def steps(path: Path) -> list[str]:
    return [row["step"] for row in csv.DictReader(path.open())]


def test_log_continues_at_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    log = watch.Log(path, 0)
    for step in (50, 100, 150):
        log.write({"step": step, "train_loss": 1.5})
    watch.Log(path, 120).write({"step": 170})
    assert steps(path) == ["50", "100", "170"]
    watch.Log(path, 0)
    assert steps(path) == []


def test_untrained_model_knows_nothing() -> None:
    windows = np.random.default_rng(1).integers(0, 300, (3, 17)).astype(np.uint16)
    assert watch.held_out_loss(Decoder(TINY), windows) == pytest.approx(math.log(300), abs=0.1)


def test_sample_continues_its_prompt_the_same_each_time() -> None:
    tokenizer, model = data.train_tokenizer(corpus(), 300), Decoder(TINY)
    text = watch.sample_text(model, tokenizer, "Once upon", max_tokens=40)  # past the context of 32
    assert text.startswith("Once upon") and text == watch.sample_text(model, tokenizer, "Once upon", max_tokens=40)
