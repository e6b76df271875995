"""The measuring kernels do the work they are timed for, and roofs are remembered."""

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.compiler.launch import Workers
from lutra.machine import limits

ISAS = [target.isa for target in targets.available()]


@pytest.fixture
def small(monkeypatch):
    """A measurement of milliseconds: what it prints means nothing, that it works does."""
    data = np.full(4 * limits.BLOCK_BYTES, 1, np.uint8)
    monkeypatch.setattr(limits, "_buffer", lambda: data)
    monkeypatch.setattr(limits, "TURNS", 1 << 8)
    monkeypatch.setattr(limits, "SECONDS", 0.01)


@pytest.mark.parametrize("isa", ISAS)
def test_every_byte_is_read(isa):
    data = np.random.default_rng(0).integers(0, 256, 2 * limits.BLOCK_BYTES, dtype=np.uint8)
    args = {"data": data, "out": np.zeros(128, np.uint8)}
    limits.read_bytes.run(args, 2, isa, prefetch_bytes=4096, second_bytes=8192)
    want = np.bitwise_xor.reduce(data.reshape(2, -1, 64), axis=1)
    assert (args["out"].reshape(2, 64) == want).all()


@pytest.mark.parametrize("isa", ISAS)
def test_every_product_is_made(isa):
    side = limits.SIDES.get(isa, limits.NARROW_SIDE)
    rng = np.random.default_rng(0)
    a = rng.integers(0, 128, (4, side, 16, 4), dtype=np.uint8)
    b = rng.integers(-127, 128, (4, side, 16, 4), dtype=np.int8)
    args = {"a": a.reshape(-1), "b": b.reshape(-1), "out": np.zeros(16, np.int32)}
    limits.multiply_bytes.run(args, 1, isa, side=side)
    want = np.einsum("tilq,tjlq->l", a.astype(np.int64), b.astype(np.int64)) * (limits.TURNS // 4)
    assert (args["out"] == want.astype(np.int32)).all()


def test_rates_are_positive_and_counted_for_all_threads(small):
    assert limits.read_gb_per_s(2, seconds=0) > 0
    assert limits.int8_gops(2, seconds=0) > 0


def test_a_roof_of_given_work_does_that_work(small):
    """The small buffer is four blocks long: eleven blocks are two laps and three blocks."""
    for program in limits.read_programs(11 * limits.BLOCK_BYTES + 7):
        assert [step.tasks for step in program.steps] == [4, 4, 3]
        assert limits.bytes_read(program) == 11 * limits.BLOCK_BYTES
        program.run(Workers(2), 0)
    side = limits._side()
    (step,) = limits.multiply_program(10 * 2 * 64 * side**2 * limits.TURNS).steps
    assert step.tasks == 10
    step.launch.run(0, step.tasks)


def test_a_roof_is_measured_once(small, monkeypatch):
    first = limits.measure()
    monkeypatch.setattr(limits, "measure", lambda: pytest.fail("measured again"))
    assert limits.roof() == first
    monkeypatch.setattr(limits, "cpu_name", lambda: "another CPU")
    monkeypatch.setattr(limits, "measure", lambda: "measured")
    assert limits.roof() == "measured"


def test_a_damaged_memory_of_roofs_is_measured_anew(small):
    limits.measure()
    path = limits.jit.cache_folder() / "roof.json"
    for text in ("", "[]", '{"x": 1}', f'{{"{limits._key()}": {{"cores": 1}}}}', f'{{"{limits._key()}": 7}}'):
        path.write_text(text)
        assert limits.roof().gb_per_s > 0
