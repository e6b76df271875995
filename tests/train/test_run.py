"""A run: resuming changes nothing, the loss falls, weight decay ends halfway."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'lutra[train]'")

from lutra.errors import FileError  # noqa: E402
from lutra.train.model import DecoderConfig  # noqa: E402
from lutra.train.run import Run, RunConfig  # noqa: E402
from lutra.train.schedule import Schedule  # noqa: E402
from tests.train.test_data import mixture  # noqa: E402

TINY = DecoderConfig(vocab_size=300, hidden_size=32, ffn_size=48, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
                     max_context=32)
CONFIG = RunConfig(model=TINY, schedule=Schedule(warmup_steps=2), length=16, batch_size=2)


def take_steps(run: Run, last: int, of: int) -> None:
    while run.step < last:
        run.take_step(run.step / of)


def test_resuming_gives_identical_parameters(tmp_path: Path) -> None:
    whole = Run.start(CONFIG, mixture())
    take_steps(whole, 10, of=10)
    interrupted = Run.start(CONFIG, mixture())
    take_steps(interrupted, 4, of=10)
    interrupted.save(tmp_path / "checkpoint.pt")
    resumed = Run.start(CONFIG, mixture())
    resumed.restore(tmp_path / "checkpoint.pt")
    take_steps(resumed, 10, of=10)
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_loss_falls() -> None:
    run = Run.start(CONFIG, mixture())
    losses = [run.take_step(0.2) for _ in range(60)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_weight_decay_stops_halfway() -> None:
    run = Run.start(CONFIG, mixture())
    run.take_step(0.4)
    assert [g["weight_decay"] for g in run.optimizer.param_groups] == [CONFIG.schedule.weight_decay, 0]
    run.take_step(0.6)
    assert [g["weight_decay"] for g in run.optimizer.param_groups] == [0, 0]


def test_a_damaged_checkpoint_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    run = Run.start(CONFIG, mixture())
    run.save(path)
    for content in (path.read_bytes()[:1000], b"", b"no checkpoint"):
        path.write_bytes(content)
        with pytest.raises(FileError, match="damaged"):
            run.restore(path)
