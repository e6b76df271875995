"""The loop: resuming changes nothing, the schedule follows its budget, the log and checkpoints are whole."""

import csv
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'lutra[train]'")

from lutra.errors import RequestError  # noqa: E402
from lutra.train import loop  # noqa: E402
from lutra.train.model import DecoderConfig  # noqa: E402
from tests.train.test_data import TALES, mixture  # noqa: E402

TINY = DecoderConfig(vocab_size=300, hidden_size=32, ffn_size=48, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
                     max_context=32)
CONFIG = loop.TrainConfig(model=TINY, length=16, batch_size=2, warmup_steps=2, threads=1)


def take_steps(run: loop.Run, last: int, of: int) -> None:
    while run.step < last:
        run.take_step(run.step / of)


def test_resuming_gives_identical_parameters(tmp_path: Path) -> None:
    whole = loop.Run.start(CONFIG, mixture())
    take_steps(whole, 10, of=10)
    interrupted = loop.Run.start(CONFIG, mixture())
    take_steps(interrupted, 4, of=10)
    interrupted.save(tmp_path / "checkpoint.pt")
    resumed = loop.Run.start(CONFIG, mixture())
    resumed.restore(tmp_path / "checkpoint.pt")
    take_steps(resumed, 10, of=10)
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_loss_falls() -> None:
    run = loop.Run.start(CONFIG, mixture())
    losses = [run.take_step(0.2) for _ in range(60)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_budget_takes_whichever_comes_first() -> None:
    soon = datetime.now(timezone.utc) + timedelta(seconds=100)
    assert loop.Budget(steps=10).progress(5, 0) == 0.5
    assert loop.Budget(minutes=2).progress(0, 30) == 0.25
    assert loop.Budget(minutes=2, until=soon).progress(0, 100) == pytest.approx(100 / 120, abs=0.01)
    assert loop.Budget(minutes=60, until=soon).progress(0, 100) == pytest.approx(0.5, abs=0.01)
    assert loop.Budget(minutes=60, until=soon - timedelta(hours=1)).progress(0, 100) == 1


def test_learning_rate_warms_up_and_reaches_zero() -> None:
    assert loop.learning_rate(CONFIG, 0, 0.0) == CONFIG.peak_rate / 2
    assert loop.learning_rate(CONFIG, 5, 0.0) == CONFIG.peak_rate
    assert loop.learning_rate(CONFIG, 5, 1.0) == 0


def test_until_is_a_time_to_come() -> None:
    now = datetime.now(timezone.utc)
    assert timedelta(0) < loop.parse_until(f"{now:%H:%M}") - now <= timedelta(days=1)
    with pytest.raises(RequestError, match="HH:MM"):
        loop.parse_until("half past eight")


def test_weight_decay_stops_halfway() -> None:
    run = loop.Run.start(CONFIG, mixture())
    run.take_step(0.4)
    assert [g["weight_decay"] for g in run.optimizer.param_groups] == [CONFIG.weight_decay, 0]
    run.take_step(0.6)
    assert [g["weight_decay"] for g in run.optimizer.param_groups] == [0, 0]


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
    run = loop.train(texts, texts / "tales", out, loop.Budget(steps=100), CONFIG, report=said.append,
                     evaluate_every_s=0, save_every_s=0)
    assert run.step == 100 and "parameters" in said[1]
    rows = list(csv.DictReader((out / "log.csv").open()))
    assert [row["step"] for row in rows] == ["50", "100"]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"]) and float(rows[-1]["story_loss"]) > 0
    again = loop.train(texts, texts / "tales", out, loop.Budget(steps=150), CONFIG, resume=True, report=said.append)
    assert again.step == 150
    assert [row["step"] for row in csv.DictReader((out / "log.csv").open())] == ["50", "100", "150"]


def test_nothing_to_resume_is_an_error(texts: Path) -> None:
    with pytest.raises(RequestError, match="start without --resume"):
        loop.train(texts, texts / "tales", texts / "run", loop.Budget(steps=1), CONFIG, resume=True)
