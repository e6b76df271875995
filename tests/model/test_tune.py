"""The search with a clock that a test holds: what it tries, what it keeps, and that no text changes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from lutra.compiler import targets
from lutra.compiler.launch import Program, Workers
from lutra.formats import catalog
from lutra.kernels import choose, plan, tuned
from lutra.kernels.plan import candidates, plan_for, tile_blocks
from lutra.kernels.tuned import DECODE, PREFILL
from lutra.machine import Roof
from lutra.model import trial
from lutra.model.kinds import Kind, kinds_of, kinds_of_shape
from lutra.model.random import random_config, random_weight, random_weights
from lutra.model.transformer import Transformer
from lutra.model.trial import Alternation
from lutra.model.tune import families, is_faster, tune

ISA = targets.choose().isa
ROOF = Roof(2, 0.4, 0.5, 9.5, 19.0)  # of a slow machine, so that the clocks below are no slower than predicted
FORMAT = catalog.planes(4, 32)
CONFIG = replace(random_config("tiny"), num_layers=1, vocab_size=300)


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned, "path", lambda isa: tmp_path / f"{isa}.json")


@pytest.fixture(autouse=True)
def few_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search compiles all that it tries; a third of the plans and of the blocks show what it does with them."""
    monkeypatch.setitem(plan.SHAPES, "mad", ((1, 1, 1, False), (2, 2, 1, False), (2, 4, 1, False)))
    monkeypatch.setattr(plan, "DISTANCES", ((0, 0), (plan.NEAR, plan.FAR)))
    for order in ("mad", "trit5"):
        blocks = {1, 2, choose.row_blocks(order, ISA)[-1]}
        monkeypatch.setitem(choose.ROW_BLOCKS, (order, ISA), tuple(sorted(blocks)))


@dataclass
class Clock:
    """Gives every program the seconds that a rule says of its last launch, and remembers what was timed."""

    rule: Callable[[str, dict[str, Any]], float]
    timed: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, programs: Sequence[Program], rows: int) -> list[list[float]]:
        statics = [{**program.steps[-1].launch.static, "rows": rows} for program in programs]
        kernels = [program.steps[-1].launch.kernel.name for program in programs]
        copies = [sum(s.launch.kernel.name == k for s in p.steps) for p, k in zip(programs, kernels, strict=True)]
        self.timed += statics
        return [[self.rule(name, s) * n] * 3 for name, s, n in zip(kernels, statics, copies, strict=True)]


def silent(label: str, done: int, total: int) -> None:
    assert 0 <= done <= total


def test_the_fastest_is_kept():
    """Small plans without prefetching are fastest here: the search ends there and says what was gained."""
    kind = Kind(FORMAT, 64, 64, uses=(DECODE,))
    clock = Clock(
        lambda name, s: 1e-6 * (2 * s["plan"].tiles + (s["plan"].prefetch_bytes > 0)) if "plan" in s else 9e-6
    )
    found, *others = tune([kind], 1, silent, clock, ROOF)
    assert found.usual.plan == plan_for("mad", ISA, 1)
    assert (found.best.plan.tiles, found.best.plan.prefetch_bytes) == (1, 0)
    assert (found.usual_us, found.best_us) == (pytest.approx(2 * found.usual.plan.tiles + 1), pytest.approx(2))
    assert tuned.plan(random_weight(kind.format, 64, 64, "mad"), 1) == found.best.plan
    cells = found.cells()
    assert cells["kernel"] == "mad planes4-g32 64x64" and cells["gain"] == "150 %" and cells["µs after"] == "2.0"
    assert {other.order for other in others} == {"lut"}
    assert families([kind]) == ["planes4-g32 64x64: mad"]


def test_noise_changes_nothing():
    """Two per cent are no gain."""
    kind = Kind(FORMAT, 64, 64, uses=(DECODE,))
    usual = plan_for("mad", ISA, 1)
    clock = Clock(lambda name, s: 1e-6 if s.get("plan") == usual else 0.98e-6)
    assert all(
        found.best == found.usual and found.usual_us == found.best_us for found in tune([kind], 1, silent, clock, ROOF)
    )


def test_a_gain_is_told_from_a_disturbance():
    """Better in one round only; better only where the usual was disturbed; better but for one disturbance."""
    usual = [1.0, 1.0, 1.0, 1.0, 1.0]
    assert not is_faster([1.0, 1.0, 1.0, 1.0, 0.1], usual)
    assert not is_faster([1.0] * 5, [9.0, 9.0, 1.0, 9.0, 9.0])
    assert is_faster([0.9, 0.9, 2.0, 0.9, 0.9], usual)


def test_a_busy_computer_concludes_nothing():
    """A millisecond for what takes microseconds: the table says so, and nothing is stored."""
    kind = Kind(FORMAT, 64, 64, uses=(DECODE,))
    clock = Clock(lambda name, s: 1e-3 if s.get("plan") == plan_for("mad", ISA, 1) else 2e-6)
    found, *_ = tune([kind], 1, silent, clock, ROOF)
    assert found.is_disturbed and "busy" in found.cells()["after"] and found.cells()["gain"] == "-"
    assert "mad" not in [choice.order for choice in tuned.read(ISA).values()]


def test_hopeless_options_are_not_tried():
    """Sums that no register holds are left out, and everything tried is a candidate."""
    clock = Clock(lambda name, s: 1e-6)
    tune([Kind(FORMAT, 64, 64)], 1, silent, clock, ROOF)
    tried = [s for s in clock.timed if "plan" in s]
    assert all(s["plan"] in candidates("mad", ISA, s["tile_m"]) for s in tried)
    largest = max(s["tile_m"] for s in tried)
    too_many = replace(plan_for("mad", ISA, largest), tiles=2, accumulators=4)
    of_largest = [s["plan"] for s in tried if s["tile_m"] == largest]
    assert too_many not in of_largest or tile_blocks("mad", ISA)  # beside tiles, blocks of vectors are small
    blocks = {use: {s["tile_m"] for s in clock.timed if (s["rows"] > 1) == use} for use in (False, True)}
    assert blocks[False] == {1}
    assert blocks[True] == set(choose.row_blocks("mad", ISA)) - {1}


def test_the_faster_family_is_chosen_from_then_on():
    kind = Kind(FORMAT, 64, 64)
    tune([kind], 1, silent, Clock(lambda name, s: 1e-6 if name == "matmul_lut" else 2e-6), ROOF)
    assert families([kind]) == ["planes4-g32 64x64: lut instead of mad"]
    assert choose.family(FORMAT, 64, 64) == "lut" and choose.family(FORMAT, 64, 96) == "mad"


def test_a_dense_weight_has_one_family():
    kind = Kind("bf16", 40, 64, uses=(DECODE,))
    (found,) = tune([kind], 1, silent, Clock(lambda name, s: 1e-6 * s["plan"].tiles), ROOF)
    assert (found.order, found.kind.name, found.best.plan.tiles) == ("dense", "bf16", 1)
    assert families([kind]) == []


def test_the_kinds_of_a_model_are_those_of_its_shape():
    ternary = catalog.find("ternary")
    kinds = kinds_of(random_weights(CONFIG, ternary))
    assert kinds == kinds_of_shape(CONFIG, ternary)
    assert [(kind.n, kind.k, kind.count) for kind in kinds] == [
        (512, 256, 1), (256, 256, 1), (1376, 256, 1), (256, 688, 1), (300, 256, 1),
    ]  # fmt: skip
    assert kinds[-1].uses == (DECODE,) and kinds[0].uses == (DECODE, PREFILL)
    head = kinds_of_shape(CONFIG, ternary, FORMAT)[-1]
    assert head.name == "planes4-g32"


def test_a_large_model_streams_and_a_small_one_does_not(monkeypatch: pytest.MonkeyPatch):
    """1024 bytes of weight: four copies fill what a cache of 1 KiB, twice, cannot hold."""
    weight = random_weight(FORMAT, 128, 64, "mad").num_bytes
    monkeypatch.setattr(trial, "STREAM_BYTES", 4 * weight)
    kind = Kind(FORMAT, 128, 64)
    assert [len(trial.Trial(kind, "mad", 1, most).copies) for most in (1, 3, 100)] == [1, 3, 4]
    assert len(trial.Trial(kind, "mad", 16, 100).copies) == 1
    first, second, *_ = trial.Trial(kind, "mad", 1, 100).copies
    assert first.codes.ctypes.data != second.codes.ctypes.data and first.codes.tobytes() == second.codes.tobytes()


def test_alternation_runs_every_program():
    one = trial.Trial(Kind(FORMAT, 32, 32), "mad", 1, 1)
    option = trial.Option(1, plan_for("mad", ISA, 1))
    times = Alternation(Workers(1), seconds=0.0)([one.program(option)] * 2, 1)
    assert [len(rounds) for rounds in times] == [trial.ROUNDS] * 2 and min(map(min, times)) > 0
    assert one.y[0, 0] != 0


def test_tuning_changes_no_bit():
    """Logits of a prompt and of a decoded token, with the tables' kernels and with others, of both families."""
    ternary = catalog.find("ternary")

    def logits() -> bytes:
        transformer = Transformer(CONFIG, random_weights(CONFIG, ternary), Workers(1), 16, chunk=16)
        return transformer.prefill([1, 3, 200, 7, 9], 0).tobytes() + transformer.decode(30, 5).tobytes()

    before = logits()
    kinds = kinds_of_shape(CONFIG, ternary)
    slow = {"matmul_mad": 2e-6, "matmul_lut": 1e-6}
    tune(kinds[:2], 1, silent, Clock(lambda name, s: slow.get(name, 3e-6)), ROOF)
    tune(kinds[2:], 1, silent, Clock(lambda name, s: 1e-6 * s["plan"].tiles if "plan" in s else 9e-6), ROOF)
    assert [choose.family(ternary, kind.n, kind.k) for kind in kinds] == ["lut", "lut", "mad", "mad", "mad"]
    assert tuned.plan(random_weight(ternary, 1376, 256, "mad"), 1) != plan_for("mad", ISA, 1)
    assert logits() == before
