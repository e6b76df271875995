"""The loop: it leaves log, checkpoint and tokenizer, and continues from them."""

import csv
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'lutra[train]'")

from lutra.errors import RequestError  # noqa: E402
from lutra.train import loop  # noqa: E402
from lutra.train.model import DecoderConfig  # noqa: E402
from lutra.train.run import Run, RunConfig  # noqa: E402
from lutra.train.schedule import Budget  # noqa: E402
from tests.train.test_data import TALES  # noqa: E402

TINY = DecoderConfig(vocab_size=300, hidden_size=32, ffn_size=48, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
                     max_context=32)
CONFIG = RunConfig(model=TINY, length=16, batch_size=2, threads=1)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    for i in range(10):
        lines = (f'"It is day {j} of year {i}," said the old captain, and he looked at the sea.\n\n' for j in range(30))
        (tmp_path / f"Author_Title{i}_1900.txt").write_text("".join(lines))
    (tmp_path / "tales").write_text("\n".join(TALES))
    return tmp_path


def test_train_leaves_log_checkpoint_and_tokenizer(texts: Path) -> None:
    out = texts / "run"
    said: list[str] = []
    run = loop.train(texts, texts / "tales", out, Budget(steps=100), CONFIG, report=said.append,
                     evaluate_every_s=0, save_every_s=0)
    assert run.step == 100 and "parameters" in said[0]
    rows = list(csv.DictReader((out / "log.csv").open()))
    assert [row["step"] for row in rows] == ["50", "100"]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"]) and float(rows[-1]["story_loss"]) > 0
    again = loop.train(texts, texts / "tales", out, Budget(steps=150), CONFIG, resume=True, report=said.append)
    assert again.step == 150
    assert [row["step"] for row in csv.DictReader((out / "log.csv").open())] == ["50", "100", "150"]


def test_nothing_to_resume_is_an_error(texts: Path) -> None:
    with pytest.raises(RequestError, match="start without --resume"):
        loop.train(texts, texts / "tales", texts / "run", Budget(steps=1), CONFIG, resume=True)


def test_an_interrupt_keeps_the_checkpoint(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter([4.0, 4.0])

    def take_step(run: Run, progress: float) -> float:
        run.step += 1
        try:
            return next(steps)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(Run, "take_step", take_step)
    said: list[str] = []
    loop.train(texts, texts / "tales", texts / "run", Budget(steps=9), CONFIG, report=said.append)
    assert "--resume" in said[-1] and (texts / "run" / "checkpoint.pt").exists()


def test_a_loss_that_is_not_finite_stops_the_run(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "take_step", lambda run, progress: float("nan"))
    with pytest.raises(RequestError, match="finite"):
        loop.train(texts, texts / "tales", texts / "run", Budget(steps=9), CONFIG, report=lambda line: None)
