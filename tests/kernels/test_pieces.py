"""How attention is cut: merging by hand, the shape of blocks and tiles, and items that cover everything once."""

import numpy as np
import pytest

from lutra.compiler.kernel import kernel
from lutra.compiler.language import Pointer, f32, i64, load, store
from lutra.formats.reduce import tree_sum
from lutra.kernels import pieces
from lutra.kernels.items import items
from lutra.kernels.pieces import PIECE, TASKS, Cut, Part, cut_for, empty_part, merge_spec, tile_for
from lutra.kernels.records import bind_merge


def part(m: float, total: float, out: float) -> Part:
    return Part(np.array([m], "f4"), np.full((1, 1, 16), total, "f4"), np.array([[out]], "f4"))


def test_merge_by_hand():
    """1 of weight 2**3 and 5 of weight 2**2 weigh (8 + 4 * 5) together, in units of 2**3."""
    merged = merge_spec(part(3, 1, 1), part(2, 1, 5))
    assert (merged.m[0], merged.sums[0, 0, 0], merged.out[0, 0]) == (3, 1.5, 3.5)


def test_what_is_empty_or_not_seen_merges_without_a_trace():
    some, nothing = part(-5, 0.3, 0.7), part(-np.inf, 0, 0)
    for merged in (merge_spec(empty_part(1, 1, 1), some), merge_spec(some, nothing)):
        assert [a.tobytes() for a in merged] == [a.tobytes() for a in some]


@pytest.mark.parametrize(
    "rows, group, context, cut",
    [
        (1, 4, 256, Cut(1, 1, False)),  # one piece needs no merge
        (1, 4, 257, Cut(1, 2, True)),
        (8, 1, 4096, Cut(8, 16, True)),
        (64, 4, 4096, Cut(8, 16, False)),
        (64, 1, 64, Cut(32, 1, False)),  # few heads to a key: more rows share it
        (16, 1, 64, Cut(16, 1, False)),
    ],
)
def test_cuts(rows, group, context, cut):
    assert cut_for(rows, group, context) == cut


@pytest.mark.parametrize(
    "rows, group, wanted, tile",
    [(1, 4, 16, 4), (8, 4, 16, 16), (5, 4, 16, 4), (6, 4, 16, 12), (8, 6, 4, 3), (8, 1, 16, 8)],
)
def test_tiles_are_heads_of_a_row_or_whole_rows(rows, group, wanted, tile):
    assert tile_for(Cut(rows, 1, False), group, wanted) == tile


@kernel
def visit(state: Pointer[i64], count: Pointer[f32], num_pieces: i64, task: i64, *, heads, kv_heads, max_rows, split):
    """Count how often each piece, or all of them at once, meets a row and key/value head."""
    sizes = dict(heads=heads, kv_heads=kv_heads, max_rows=max_rows, split=split, record=1)
    for item in items(state, task, num_pieces, **sizes):
        ((row, _),) = item.queries(item.num_slots * 0, 1)
        at = (row * kv_heads + item.kv) * num_pieces + (item.piece if split else item.end * 0)
        store(count, at, load(count, at) + 1.0)


@pytest.mark.parametrize("split, rows, max_rows", [(True, 1, 1), (True, 5, 8), (False, 37, 8), (False, 1, 1)])
def test_items_meet_every_piece_once(split, rows, max_rows):
    kv_heads, position, num_pieces = 3, 2 * PIECE + 7, 5
    count = np.zeros((rows, kv_heads, num_pieces), "f4")
    args = {"state": np.array([rows, position, 0, 0], "i8"), "count": count, "num_pieces": num_pieces}
    visit.run(args, TASKS, heads=6, kv_heads=kv_heads, max_rows=max_rows, split=split)
    want = np.zeros_like(count)
    want[::max_rows, :, : 3 if split else 1] = 1
    assert np.array_equal(count, want)


def test_merging_in_a_kernel_equals_the_specification():
    """`merge_attention` against merge_spec: two heads, a row that sees three of four pieces."""
    rng = np.random.default_rng(0)
    room = pieces.allocate_room(Cut(1, 4, True), 2, 1, 1, 16)
    room.parts[:] = rng.standard_normal(room.parts.shape)
    records = room.parts.reshape(2, 4, 48).copy()
    records[..., :16] = room.parts.reshape(2, 4, 48)[..., :16] = rng.integers(-9, 9, (2, 4, 1))
    y = np.zeros((1, 20), "f4")
    state = np.array([1, 2 * PIECE, 0, 0], "i8")
    step = bind_merge(room, y, state, heads=2, head_dim=10, num_sums=1, isa=None)
    step.launch.run(0, step.count(1))
    total = empty_part(2, 1, 16)
    for i in range(3):
        total = merge_spec(total, Part(records[:, i, 0], records[:, i, None, 16:32], records[:, i, 32:]))
    want = total.out[:, :10] / tree_sum(total.sums[:, 0])[:, None]
    assert y.tobytes() == want.tobytes()
