"""Attention: equal to NumPy on every ISA, close to a float64 softmax, and the same bits however the work is cut."""

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.errors import KernelError
from lutra.kernels import attention, rope
from tests.cover import pairs

ISAS = [target.isa for target in targets.available()]
# heads, kv_heads, head_dim
SHAPES = [(4, 2, 8), (3, 3, 6), (6, 2, 80), (4, 1, 100), (2, 1, 128)]


def make(rows: int, heads: int, kv_heads: int, head_dim: int, context: int, dtype: str = "f16"):
    """Random queries [rows, heads * D and a little more] and a full cache."""
    rng = np.random.default_rng(head_dim + rows)
    q = rng.standard_normal((rows, heads * head_dim + 2 * kv_heads * head_dim)).astype("f4")
    keys, values = rope.allocate_cache(kv_heads, context, head_dim, dtype)
    keys[:] = rng.standard_normal(keys.shape)
    values[..., :head_dim] = rng.standard_normal((*values.shape[:2], head_dim))
    return q, keys, values


def run(q, keys, values, position: int, heads: int, isa=None, **options) -> np.ndarray:
    """y [rows, heads, D]"""
    head_dim = keys.shape[2]
    y = np.zeros((len(q), heads * head_dim), "f4")
    state = np.array([len(q), position, 0, 0], "i8")
    for step in attention.bind(q, keys, values, y, state, heads=heads, isa=isa, **options):
        step.launch.run(0, step.count(len(q)))
    return y.reshape(len(q), heads, head_dim)


def spec(q, keys, values, position: int, heads: int) -> np.ndarray:
    head_dim = keys.shape[2]
    return attention.attention_spec(q[:, : heads * head_dim].reshape(len(q), heads, head_dim), keys, values, position)


def plain(q, keys, values, position: int, heads: int) -> np.ndarray:
    """Softmax attention in float64, with no blocks."""
    kv_heads, _, head_dim, _ = keys.shape
    k = keys.astype("f8").transpose(0, 1, 3, 2).reshape(kv_heads, -1, head_dim)
    out = np.zeros((len(q), heads, head_dim))
    for row in range(len(q)):
        for head in range(heads):
            seen, kv = position + row + 1, head // (heads // kv_heads)
            score = k[kv, :seen] @ q[row, head * head_dim : (head + 1) * head_dim].astype("f8") / np.sqrt(head_dim)
            p = np.exp(score - score.max())
            out[row, head] = (p / p.sum()) @ values[kv, :seen, :head_dim].astype("f8")
    return out


def test_one_position_gives_its_value():
    q, keys, values = make(1, 2, 1, 8, 16)
    got = run(q, keys, values, 0, 2)
    assert got.tolist() == [[values[0, 0, :8].tolist()] * 2]


def test_equal_scores_give_the_mean():
    q, keys, values = make(1, 1, 1, 8, 16, "f32")
    values[0, :4, 0] = 1, 2, 3, 6
    assert run(q * 0, keys, values, 3, 1)[0, 0, 0] == 3


@pytest.mark.parametrize("shape, dtype, isa", pairs(SHAPES, ["f16", "bf16", "f32"], ISAS))
def test_every_isa_equals_the_specification(shape, dtype, isa):
    heads, kv_heads, head_dim = shape
    q, keys, values = make(5, heads, kv_heads, head_dim, 48, dtype)
    for position in (0, 13, 31):
        want = spec(q, keys, values, position, heads)
        assert run(q, keys, values, position, heads, isa).tobytes() == want.tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_pieces_equal_the_specification(rows, isa):
    """Positions on both sides of the ends of pieces of 256; up to 8 rows in pieces of their own, more in blocks."""
    q, keys, values = make(rows, 4, 2, 20, 560)
    for position in (250, 255, 256, 511, 540):
        got = run(q, keys, values, position, 4, isa)
        assert got.tobytes() == spec(q, keys, values, position, 4).tobytes()


@pytest.mark.parametrize("heads, kv_heads, head_dim", SHAPES)
def test_close_to_a_float64_softmax(heads, kv_heads, head_dim):
    q, keys, values = make(4, heads, kv_heads, head_dim, 320)
    got = run(q * 3, keys, values, 300, heads)
    np.testing.assert_allclose(got, plain(q * 3, keys, values, 300, heads), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize(
    "heads, kv_heads, head_dim, dtype, context",
    [(2, 1, 6, "f16", 32), (2, 2, 20, "f32", 32), (2, 1, 6, "f16", 320)],
)
def test_interpreter_stays_in_bounds_and_agrees(heads, kv_heads, head_dim, dtype, context):
    q, keys, values = make(2, heads, kv_heads, head_dim, context, dtype)
    y, position = np.zeros((2, heads * head_dim), "f4"), context - 17
    state = np.array([2, position, 0, 0], "i8")
    steps = attention.bind(q, keys, values, y, state, heads=heads, tile=2, sums=2)
    assert len(steps) == (2 if context > 256 else 1)
    for step in steps:
        step.launch.interpret(step.count(2))
    assert y.tobytes() == spec(q, keys, values, position, heads).tobytes()


@pytest.mark.parametrize("position", [17, 250])
def test_tiles_and_chunks_leave_the_bits_alone(position):
    q, keys, values = make(20, 4, 1, 64, 300)
    whole = run(q, keys, values, position, 4)
    for tile, sums in ((1, 1), (2, 6), (4, 4), (16, 16), (32, 64)):
        assert run(q, keys, values, position, 4, tile=tile, sums=sums).tobytes() == whole.tobytes()
    parts = [run(q[a:b], keys, values, position + a, 4) for a, b in ((0, 1), (1, 3), (3, 15), (15, 20))]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("rows", [3, 20])
def test_a_room_for_more_rows_and_used_before_gives_the_same_bits(rows):
    q, keys, values = make(rows, 4, 2, 20, 560)
    room = attention.allocate(keys, 8 if rows == 3 else 64, 4)
    for buffer in (room.scores, room.parts):
        buffer[:] = np.nan
    for position in (500, 255):
        got = run(q, keys, values, position, 4, room=room)
        assert got.tobytes() == run(q, keys, values, position, 4).tobytes()


def test_tasks_may_run_in_any_order():
    """What threads do: nothing that a task writes may be another's to read."""
    q, keys, values = make(20, 4, 2, 20, 560)
    y = np.zeros((20, 80), "f4")
    (step,) = attention.bind(q, keys, values, y, np.array([20, 500, 0, 0], "i8"), heads=4)
    for task in np.random.default_rng(0).permutation(step.count(20)):
        step.launch.run(int(task), int(task) + 1)
    assert y.tobytes() == run(q, keys, values, 500, 4).tobytes()


def test_what_lies_after_the_position_does_not_matter():
    q, keys, values = make(1, 2, 2, 64, 64)
    before = run(q, keys, values, 20, 2)
    keys[:, 1, :, 5:] = 60000  # positions 21 .. 31 of the block being read
    keys[:, 2:] = -60000
    values[:, 21:] = -60000
    assert run(q, keys, values, 20, 2).tobytes() == before.tobytes()


def test_extreme_scores_stay_finite():
    q, keys, values = make(1, 1, 1, 64, 64, "f32")
    got = run(q * 1e15, keys, values, 40, 1)
    assert np.isfinite(got).all()
    best = int(np.argmax(np.einsum("d,bdj->bj", q[0, :64], keys[0]).reshape(-1)[:41]))
    np.testing.assert_allclose(got[0, 0], values[0, best, :64], rtol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_no_number_at_all_counts_as_the_lowest_score(isa):
    q, keys, values = make(2, 2, 1, 20, 64)
    q[0, 3], q[1, :20] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        want = spec(q, keys, values, 40, 2)
    assert np.isfinite(want).all() and run(q, keys, values, 40, 2, isa).tobytes() == want.tobytes()


def test_bad_requests_say_what_was_expected():
    q, keys, values = make(1, 4, 2, 8, 16)
    with pytest.raises(KernelError, match="multiple of kv_heads"):
        run(q, keys, values, 0, 3)
    with pytest.raises(KernelError, match="at least 80 columns"):
        run(q, keys, values, 0, 10)
    with pytest.raises(KernelError, match="allocate_cache"):
        run(q, keys, values[:, :8].copy(), 0, 4)
