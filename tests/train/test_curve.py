"""The loss curve: rows without a held-out loss are left out, and the picture is a small PNG."""

from pathlib import Path

import pytest

from lutra.train import curve

LOG = """step,tokens,train_loss,novel_loss,story_loss
50,200000,5.5,,
100,400000,4.5,4.6,3.9
"""


def test_read_curve(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    assert curve.read_curve(tmp_path / "log.csv", "train_loss") == ([0.2, 0.4], [5.5, 4.5])
    assert curve.read_curve(tmp_path / "log.csv", "story_loss") == ([0.4], [3.9])


def test_draw(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib: pip install 'lutra[train]'")
    (tmp_path / "log.csv").write_text(LOG)
    curve.draw(tmp_path / "log.csv", tmp_path / "loss.png")
    picture = (tmp_path / "loss.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) < 100_000
