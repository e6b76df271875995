"""Records of attention: what is known of a query and some positions, and how two of them become one.

m in 16 lanes | sums of 16 lanes each | out f32 [columns]. What the numbers are, pieces.py says.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lutra.compiler.kernel import Launch, kernel
from lutra.compiler.language import (
    Pointer,
    Value,
    const,
    f32,
    i64,
    load,
    loop,
    maximum,
    reduce_add,
    reduce_max,
    select,
    shuffle,
    splat,
    store,
    var,
)
from lutra.compiler.launch import Step
from lutra.formats.reduce import NUM_LANES
from lutra.kernels.exp2 import exp2
from lutra.kernels.items import Item
from lutra.kernels.pieces import LOWEST, PIECE, TASKS, Room
from lutra.kernels.rope import BLOCK
from lutra.kernels.rotary import chunks


def merged_pieces(
    item: Item, parts: Value, y: Value, y_stride: Value, num_sums: int, head_dim: int
) -> Iterator[Value]:
    """The pieces of an item, whose records are written while it is visited; the last one gone, y stands there.

    Of an item that is a piece the record stays, for `merge_attention`.
    """
    if item.piece is not None:
        yield item.piece
        return
    for slot in loop(0, item.num_slots):
        clear_part(parts, item.total(slot), item.record)
    for piece in item.pieces():
        yield piece
        for slot in loop(0, item.num_slots):
            merge_part(parts, item.total(slot), item.part(slot, (slot, slot), piece), item.record)
    for slot in loop(0, item.num_slots):
        ((row, head),) = item.queries(slot, 1)
        finish(parts, item.total(slot), y, row * y_stride + head * head_dim, num_sums, head_dim)


def top_score(scores: Value, at: Value, num_blocks: Value) -> Value:
    """The largest of some blocks of scores, in 16 lanes."""
    top = var(const(float("-inf"), f32, BLOCK))
    for block in loop(0, num_blocks):
        top.set(maximum(top, load(scores, at + block * BLOCK, BLOCK)))
    return splat(reduce_max(top), BLOCK)


def clear_part(parts: Value, at: Value, record: int) -> None:
    """An empty record."""
    store(parts, at, const(LOWEST, f32, NUM_LANES))
    for i in loop(NUM_LANES, record, NUM_LANES):
        store(parts, at + i, const(0.0, f32, NUM_LANES))


def merge_part(parts: Value, total: Value, part: Value, record: int) -> None:
    """Fold the record of a piece into that of all before."""
    top, c, d = _factors(load(parts, total, NUM_LANES), load(parts, part, NUM_LANES))
    store(parts, total, top)
    for i in loop(NUM_LANES, record, NUM_LANES):
        store(parts, total + i, load(parts, total + i, NUM_LANES) * c + load(parts, part + i, NUM_LANES) * d)


def _factors(old: Value, new: Value) -> tuple[Value, Value, Value]:
    """The larger maximum, and what either side is multiplied with: 2**0 is 1, so one of them needs no power."""
    is_old = old > new
    top, low = select(is_old, old, new), select(is_old, new, old)
    small = exp2(low - top)
    return top, select(is_old, 1.0, small), select(is_old, small, 1.0)


def finish(parts: Value, at: Value, y: Value, target: Value, num_sums: int, head_dim: int) -> None:
    """y = out / l, or (out + b) / l where there is a second sum."""
    l, *rest = (splat(reduce_add(load(parts, at + (1 + i) * NUM_LANES, NUM_LANES)), NUM_LANES) for i in range(num_sums))  # noqa: E741
    for i, lanes in chunks(head_dim):
        out = load(parts, at + (NUM_LANES * (1 + num_sums) + i), NUM_LANES)
        for bias in rest:
            out = out + bias
        store(y, target + i, front(out / l, lanes))


def front(v: Value, lanes: int) -> Value:
    """The first lanes of a vector."""
    return v if lanes == v.type.lanes else shuffle(v, v, range(lanes))


@kernel
def merge_attention(
    parts: Pointer[f32],
    y: Pointer[f32],
    state: Pointer[i64],
    y_stride: i64,
    pieces: i64,
    task: i64,
    *,
    heads,
    head_dim,
    num_sums,
    record,
):
    """y of one row and head from the records of its pieces."""
    row, head = task // heads, task % heads
    first = (row * heads + head) * (pieces * record)
    seen = (load(state, 1) + row) // PIECE + 1
    total = [var(load(parts, first + i, NUM_LANES)) for i in range(0, record, NUM_LANES)]
    for piece in loop(1, seen):
        at = first + piece * record
        top, c, d = _factors(total[0].get(), load(parts, at, NUM_LANES))
        total[0].set(top)
        for i, acc in enumerate(total[1:], 1):
            acc.set(acc.get() * c + load(parts, at + i * NUM_LANES, NUM_LANES) * d)
    for i, acc in enumerate(total):
        store(parts, first + i * NUM_LANES, acc.get())
    finish(parts, first, y, row * y_stride + head * head_dim, num_sums, head_dim)


def bind_merge(
    room: Room, y: np.ndarray, state: np.ndarray, *, heads: int, head_dim: int, num_sums: int, isa: str | None
) -> Step:
    """The launch that follows a split one: y of rows 0 .. state[0] - 1 from the records of their pieces."""
    args = {"parts": room.parts, "y": y, "state": state, "y_stride": y.shape[1], "pieces": room.cut.pieces}
    static = {"heads": heads, "head_dim": head_dim, "num_sums": num_sums, "record": room.parts.shape[1]}
    return Step(merge_attention.bind(args, isa, **static), heads, 1)


def steps_of(
    launch: Launch, room: Room, y: np.ndarray, state: np.ndarray, *, heads: int, head_dim: int, num_sums: int,
    isa: str | None,
) -> list[Step]:  # fmt: skip
    """Attention's launch, and the one that follows if it is split."""
    step = Step(launch, TASKS, 0)
    if not room.cut.split:
        return [step]
    return [step, bind_merge(room, y, state, heads=heads, head_dim=head_dim, num_sums=num_sums, isa=isa)]
