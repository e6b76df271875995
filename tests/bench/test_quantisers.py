"""The ground that quantisers are compared on: both models read as their authors run them, and a row is measured."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def stories(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    import stories as module

    return module


@pytest.fixture
def quantisers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    import quantisers as module

    return module


@pytest.mark.parametrize(("name", "nats"), [("stories260k", 1.4982), ("stories2m", 2.0320)])
def test_float_models_lose_what_the_reference_says(stories, quantisers, shared: Path, name: str, nats: float) -> None:
    ground = quantisers.Ground(getattr(stories, name)(shared / "data"), shared / "data")
    assert round(ground.loss, 4) == nats
    assert sum(map(len, ground.calibration)) == {"260K": 22720, "2M": 8192}[ground.story.name]


def test_weights_that_stay_cost_nothing_and_others_do(stories, quantisers, shared: Path) -> None:
    ground = quantisers.Ground(stories.stories260k(shared / "data"), shared / "data")
    ground.excerpts = ground.excerpts[:1]
    assert ground.measure(lambda name, w: w) == (np.inf, 0)
    db, nats = ground.measure(lambda name, w: np.sign(w) * np.abs(w).mean())
    assert 2 < db < 6 and nats > 1


def test_a_row_of_random_weights(quantisers) -> None:
    rows = {row.label: row for row in quantisers.data_free()}
    assert len(rows) == 37 and all(len(row.reference) == 6 for row in rows.values())
    normal, heavy = quantisers.random_weights()
    row = rows["RTN4 asym"]
    for w, reference in ((normal, row.reference[0]), (heavy, row.reference[1])):
        assert abs(quantisers.sqnr_db(w, row.values(w, 128)) - reference) < 0.1


def test_cells_mark_what_differs(quantisers) -> None:
    assert quantisers.cell(20.4, 20.42, quantisers.DB) == "20.40 (20.42, -0.02)"
    assert quantisers.cell(0.15, 0.1, quantisers.NATS) == "0.150 (0.100, +0.050) !"
    assert quantisers.cell(0.15, None, quantisers.NATS) == "0.150"
