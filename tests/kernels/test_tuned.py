"""Measurements are kept, found again and preferred to the tables, change no bit, and are ignored when in doubt."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.formats import catalog, integer
from lutra.kernels import choose, matmul_mad, tuned
from lutra.kernels.plan import Plan, candidates, distances, plan_for, shapes, tile_blocks
from lutra.kernels.tuned import DECODE, PREFILL, Choice
from tests.kernels.linears import random_activations, random_weight, run, state

ISA = targets.choose().isa
FORMAT = catalog.planes(4, 32)
N, K = 40, 64
OTHER = Plan(tiles=1, accumulators=1, unroll=1, prefetch_bytes=0)  # in no table for one row, and a candidate everywhere
BLOCK = choose.row_blocks("mad", ISA)[1]


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for measurements that no other test sees."""
    monkeypatch.setattr(tuned, "path", lambda isa: tmp_path / f"{isa}.json")
    return tmp_path / f"{ISA}.json"


def choice(use: str = DECODE, order: str = "mad", plan: Plan | None = OTHER, row_us: float = 1.0) -> Choice:
    return Choice(order, FORMAT.name, N, K, use, 1 if use == DECODE else BLOCK, plan, row_us)


def weight(order: str = "mad", n: int = N) -> choose.TiledWeight:
    return choose.tile(random_weight(FORMAT, n, K), order=order)


def test_what_is_written_is_read(path: Path):
    first, second = choice(), choice(PREFILL)
    assert tuned.read(ISA) == {}
    assert tuned.write(ISA, [first]) == path
    tuned.write(ISA, [second])
    assert tuned.read(ISA) == {first.key: first, second.key: second}
    tuned.write(ISA, [replace(first, row_us=0.5)])
    assert tuned.read(ISA)[first.key].row_us == 0.5


def test_a_measured_plan_goes_before_the_table():
    assert tuned.plan(weight(), 1) == plan_for("mad", ISA, 1) != OTHER
    tuned.write(ISA, [choice()])
    assert tuned.plan(weight(), 1) == OTHER
    assert tuned.plan(weight(n=N + 1), 1) == plan_for("mad", ISA, 1)  # another weight


def test_a_block_that_was_not_measured_has_the_prefetching_of_one_row():
    usual = plan_for("mad", ISA, 4)
    tuned.write(ISA, [choice(PREFILL)])
    assert tuned.plan(weight(), 4) == usual
    tuned.write(ISA, [choice()])
    assert tuned.plan(weight(), 4) == replace(usual, prefetch_bytes=0, second_bytes=0) != usual
    assert tuned.plan(weight(), BLOCK) == OTHER


def test_a_measured_row_block_goes_before_the_largest():
    tiled, blocks = weight(), choose.row_blocks("mad", ISA)
    assert choose.tile_m(tiled, 100) == blocks[-1]
    tuned.write(ISA, [choice(PREFILL)])
    assert choose.tile_m(tiled, 100) == BLOCK
    assert [choose.tile_m(tiled, rows) for rows in (1, 2, blocks[-1])] == [1, 2, blocks[-1]]
    unused = next(block for block in tuned.ROW_BLOCKS if block not in blocks)
    tuned.write(ISA, [replace(choice(PREFILL), tile_m=unused)])
    assert choose.tile_m(tiled, 100) == blocks[-1]


def test_a_family_is_chosen_when_both_were_measured_and_one_is_clearly_faster():
    usual, *others = choose.families(FORMAT)
    assert choose.family(FORMAT, N, K) == usual == "mad" and "lut" in others
    tuned.write(ISA, [choice(order="lut", plan=None, row_us=1.0)])
    assert choose.family(FORMAT, N, K) == "mad"  # nothing to compare with
    tuned.write(ISA, [choice(row_us=1.02)])
    assert choose.family(FORMAT, N, K) == "mad"  # noise
    tuned.write(ISA, [choice(row_us=1.5)])
    assert choose.family(FORMAT, N, K) == "lut" == choose.tile(random_weight(FORMAT, N, K)).order
    tuned.write(ISA, [choice(PREFILL, row_us=0.1)])
    assert choose.family(FORMAT, N, K) == "mad"  # one was measured with a prompt, the other not
    tuned.write(ISA, [choice(PREFILL, order="lut", plan=None, row_us=2.0)])
    assert choose.family(FORMAT, N, K) == "mad"  # what it gains per answered token it loses in the prompt


def test_every_candidate_gives_the_same_bits():
    """One row and several: what a search may end with is the table's result, bit for bit."""
    w = random_weight(FORMAT, N, K)
    tiled, m = choose.tile(w, order="mad"), BLOCK
    x = random_activations(w, m, m)
    want = integer.matmul(x.xq[:m], x.xs[:m], w)
    for tile_m in (1, BLOCK):
        for plan in {*shapes("mad", ISA, tile_m), *distances(OTHER)}:
            y = np.zeros((m, 64), np.float32)
            run(matmul_mad.bind(tiled, x, y, state(m), epilogue="store", tile_m=tile_m, shape=plan), m)
            assert y[:, :N].tobytes() == want.tobytes(), (tile_m, plan)


def test_a_model_is_bound_to_the_measured_plan():
    tuned.write(ISA, [choice()])
    w = random_weight(FORMAT, N, K)
    x, y = random_activations(w, 1, 1), np.zeros((1, 64), np.float32)
    step = choose.bind(choose.tile(w, order="mad"), x, y, state(1), epilogue="store", tile_m=1)
    assert step.launch.static["plan"] == OTHER
    run(step, 1)
    assert y[:, :N].tobytes() == integer.matmul(x.xq, x.xs, w).tobytes()


def test_candidates_start_with_the_table():
    for order in ("mad", "dense"):
        for tile_m in choose.row_blocks(order, ISA):
            found = candidates(order, ISA, tile_m)
            if tile_m in tile_blocks(order, ISA):
                assert found == []
            else:
                assert found[0] == plan_for(order, ISA, tile_m) and len(set(found)) == len(found) < 80
    assert candidates("lut", ISA, 1) == []


def edit(**entry: Any) -> Callable[[dict[str, Any]], None]:
    return lambda stored: stored["choices"][0].update(entry)


def other_head(**fields: str) -> Callable[[dict[str, Any]], None]:
    return lambda stored: stored["machine"].update(fields)


PLAN = {"tiles": 1, "accumulators": 1, "unroll": 1, "prefetch_bytes": 0}
FOREIGN = {
    "another CPU": other_head(cpu="another"),
    "another instruction set": other_head(isa="another"),
    "another version": other_head(lutra="0.0.0"),
    "other kernels": other_head(sources="0" * 64),
    "more in the head": other_head(more=""),
    "no choices": lambda stored: stored.pop("choices"),
    "choices of another kind": lambda stored: stored.update(choices={"a": 1}),
    "a plan outside the list": edit(plan={**PLAN, "prefetch_bytes": 12345}),
    "a plan of no tiles": edit(plan={**PLAN, "tiles": 0}),
    "a plan with more": edit(plan={**PLAN, "more": 1}),
    "a plan of lists": edit(plan={**PLAN, "tiles": [1]}),
    "a plan for a family with none": edit(order="lut"),
    "no plan for a family with some": edit(plan=None),
    "a row block there is not": edit(tile_m=3),
    "a row block of another use": edit(tile_m=2),
    "a row block that is a word": edit(tile_m="1"),
    "a use there is not": edit(use="sleep"),
    "no time": edit(row_us=0.0),
    "infinite time": edit(row_us=float("inf")),
    "time that is no number": edit(row_us=float("nan")),
    "time that is a word": edit(row_us="1"),
    "a field too many": edit(more=1),
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_file_this_lutra_would_not_have_written_is_ignored(change: Callable[[dict[str, Any]], None], path: Path):
    tuned.write(ISA, [choice()])
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))
    tuned._read.cache_clear()
    assert tuned.read(ISA) == {}
    assert tuned.plan(weight(), 1) == plan_for("mad", ISA, 1)
    tuned.write(ISA, [choice()])  # and is replaced
    assert list(tuned.read(ISA).values()) == [choice()]


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", '"x"', "{}", '{"machine": 1}', "[" * 100000, "\udc80"])
def test_a_damaged_file_is_ignored(text: str, path: Path):
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert tuned.read(ISA) == {} and tuned.plan(weight(), 1) == plan_for("mad", ISA, 1)


def test_numbers_of_another_kind_become_the_plan_itself(path: Path):
    """1.0 and true equal 1 in JSON's eyes; kernels count with whole numbers."""
    tuned.write(ISA, [choice()])
    stored = json.loads(path.read_text())
    stored["choices"][0]["plan"].update(tiles=1.0, unroll=True)
    path.write_text(json.dumps(stored))
    tuned._read.cache_clear()
    assert [type(value) for value in vars(tuned.plan(weight(), 1)).values()] == [int] * 5 + [bool, bool, int]
