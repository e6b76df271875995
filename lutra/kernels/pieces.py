"""How attention cuts its work, whatever the cache holds: into pieces of positions and blocks of rows.

A piece is PIECE positions, counted from position 0.  Each piece is attended to on its own, with its own maximum m, its
sums in 16 lanes and its weighted values `out`; then the pieces of a query are merged, the first one first:

    m' = max(m, m_piece), c = 2**(m - m'), d = 2**(m_piece - m')
    sum = sum * c + sum_piece * d, out = out * c + out_piece * d

which begins with m = LOWEST and zeros.  Scores are held between LOWEST and HIGHEST, and count as exponents of 2.  So
the order of every sum is fixed by positions alone, and the rest is free: pieces may be computed by different threads,
and many rows may share what they read of the cache.

`Cut` says how a step does it.  A few rows (decode) are split: an item of work is one piece of one key/value head, and a
launch of its own merges.  Many rows (prefill) are not: an item is a block of rows and one key/value head, and merges as
it goes.  Items are dealt to a fixed number of tasks, because that of a launch cannot depend on the position.

Source    Dao et al., FlashAttention, arXiv 2205.14135; pieces side by side: Flash-Decoding (Dao, Haziza, Massa, Sizov)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Pointer,
    Value,
    const,
    f32,
    i64,
    load,
    loop,
    maximum,
    minimum,
    reduce_add,
    select,
    shuffle,
    splat,
    store,
    var,
)
from lutra.compiler.launch import Step
from lutra.formats.reduce import NUM_LANES
from lutra.kernels.buffers import aligned
from lutra.kernels.exp2 import LOG2_E, exp2, exp2_spec
from lutra.kernels.rope import BLOCK, chunks

PIECE = 256  # positions; merging takes 3 % (f16) to 7 % (int4) of attention, and twice as many gained nothing
PIECE_BLOCKS = PIECE // BLOCK
LOWEST, HIGHEST = -1e30, 1e30  # of scores; NaN counts as LOWEST, and a position after the row's own as -infinity
TASKS = 32  # that items are dealt to; each has scratch of its own, and much of it would push the cache out of L2
# A split step asks for values while it reads keys, and for the next item's keys while it reads values, in the second
# cache, which waits for more lines at once than the first; the first is asked for NEAR bytes ahead
NEAR = 1024
SPLIT_ROWS = 8  # rows up to which pieces are items of their own
BLOCK_ROWS, BLOCK_QUERIES = 8, 32  # rows of a block: at least so many, and more where few heads share a key


class Part(NamedTuple):
    """What is known of some positions: m f32 [heads], sums f32 [heads, n, 16], out f32 [heads, D]."""

    m: np.ndarray
    sums: np.ndarray
    out: np.ndarray


def empty_part(heads: int, num_sums: int, head_dim: int) -> Part:
    """What is known before the first piece."""
    m = np.full(heads, LOWEST, np.float32)
    return Part(m, np.zeros((heads, num_sums, NUM_LANES), np.float32), np.zeros((heads, head_dim), np.float32))


def merge_spec(old: Part, new: Part) -> Part:
    """The merge of everything before with the next piece."""
    m = np.maximum(old.m, new.m)
    c, d = exp2_spec(old.m - m), exp2_spec(new.m - m)
    sums = old.sums * c[:, None, None] + new.sums * d[:, None, None]
    return Part(m, sums, old.out * c[:, None] + new.out * d[:, None])


def scores_spec(score: np.ndarray, first: int, position: int) -> np.ndarray:
    """Scores f32 [heads, n] of positions from `first` on, as the row at `position` takes them."""
    lowest = np.float32(LOWEST)
    seen = first + np.arange(score.shape[1]) <= position
    score = np.minimum(np.where(score > lowest, score, lowest), np.float32(HIGHEST))
    return np.where(seen, score, np.float32("-inf"))


def weights_spec(score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest of the scores of a piece, f32 [heads], and 2**(score - largest), 0 for what is not seen."""
    m = score.max(1)
    return m, exp2_spec(score - m[:, None])


def lanes_spec(x: np.ndarray) -> np.ndarray:
    """Sum f32 [heads, n] into 16 lanes, block after block: f32 [heads, 16]."""
    total = np.zeros((len(x), BLOCK), np.float32)
    for start in range(0, x.shape[1], BLOCK):
        total = total + x[:, start : start + BLOCK]
    return total


def held(score: Value) -> Value:
    """A score as `scores_spec` holds it."""
    return minimum(maximum(score, LOWEST), HIGHEST)


def factor(scale: float | None, head_dim: int) -> float:
    """What makes exponents of 2 of products q . k: log2(e) * scale, an f32; default 1 / sqrt(D)."""
    return float(np.float32(LOG2_E * (head_dim**-0.5 if scale is None else scale)))


# ---- how a step is cut ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """How a step of at most so many rows is cut.

    rows    of a block, whose queries read the cache together
    pieces  of the whole cache
    split   whether pieces are items of their own; then there is one block of rows
    """

    rows: int
    pieces: int
    split: bool


def cut_for(rows: int, group: int, context: int) -> Cut:
    """The cut of a step of at most `rows` rows, with `group` query heads to a key/value head."""
    pieces = -(-context // PIECE)
    if rows <= SPLIT_ROWS:
        return Cut(rows, pieces, pieces > 1)
    return Cut(min(rows, max(BLOCK_ROWS, BLOCK_QUERIES // group)), pieces, False)


def tile_for(cut: Cut, group: int, wanted: int) -> int:
    """Queries of a block that share registers, at most `wanted`: some heads of a row, or all heads of some rows."""
    if group >= wanted:
        return largest_divisor(group, wanted)
    return group * largest_divisor(cut.rows, wanted // group)


def largest_divisor(n: int, limit: int) -> int:
    """The largest divisor of n that is not above `limit`, and 1 for any smaller limit."""
    return max(i for i in range(1, max(limit, 1) + 1) if n % i == 0)


@dataclass(frozen=True)
class Room:
    """Memory that attention works in, shared by all layers.

    scores  f32 [TASKS, queries of a block, PIECE]     scores, then weights
    parts   f32 [parts, record]                        records: m, sums, out; see `Item.part`
    """

    cut: Cut
    scores: np.ndarray
    parts: np.ndarray


def allocate_room(cut: Cut, heads: int, kv_heads: int, num_sums: int, columns: int) -> Room:
    """Room for the cut; num_sums and columns are those of a record."""
    queries = cut.rows * (heads // kv_heads)
    parts = cut.rows * heads * cut.pieces if cut.split else 2 * TASKS * queries
    return Room(
        cut,
        aligned((TASKS, queries, PIECE), np.float32),
        aligned((parts, record_size(num_sums, columns)), np.float32),
    )


def record_size(num_sums: int, columns: int) -> int:
    """Floats of a record."""
    return NUM_LANES * (1 + num_sums) + columns


# ---- in kernels -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """Queries of a block of rows with one key/value head.  A slot is a query's number in it: row * group + head.

    max_rows, num_pieces   of the step's Cut
    num_rows, position     of the step: state[0] and [1]
    first                  row of slot 0
    piece                  the only one, or None for all that the last row sees
    following              key/value head and piece of the next item, whatever its task; the last item is its own next
    """

    task: Value
    heads: int
    group: int
    max_rows: int
    record: int
    num_pieces: Value
    num_rows: Value
    position: Value
    kv: Value
    first: Value
    piece: Value | None
    following: tuple[Value, Value] | None

    @property
    def rows_end(self) -> Value:
        return minimum(self.first + self.max_rows, self.num_rows)

    @property
    def num_slots(self) -> Value:
        """Queries there are."""
        return (self.rows_end - self.first) * self.group

    @property
    def end(self) -> Value:
        """Positions that the last row sees."""
        return self.position + self.rows_end

    @property
    def first_slot(self) -> Value:
        """Of this task in the room."""
        return self.task * (self.max_rows * self.group)

    def queries(self, slot: Value, tile: int) -> list[tuple[Value, Value]]:
        """(row, head) of `tile` slots; a row that is not there gives way to the last one."""
        row, last = self.first + slot // self.group, self.num_rows - 1
        rows = [minimum(row + i, last) for i in range(-(-tile // self.group))]
        head = self.kv * self.group + slot % self.group
        return [(rows[i // self.group], head + i % self.group) for i in range(tile)]

    def part(self, slot: Value, query: tuple[Value, Value], piece: Value) -> Value:
        """Where the record of a piece stands."""
        if self.piece is not None:
            row, head = query
            return ((row * self.heads + head) * self.num_pieces + piece) * self.record
        return self.total(slot) + self.record

    def total(self, slot: Value) -> Value:
        """Where the record of all pieces so far stands, if the item merges."""
        return (self.first_slot + slot) * (2 * self.record)

    def num_blocks(self, piece: Value) -> Value:
        """Blocks of 16 positions of a piece that the last row sees."""
        return minimum((self.end - piece * PIECE + (BLOCK - 1)) // BLOCK, PIECE_BLOCKS)

    def next_block(self, blocks: Value) -> Value:
        """The block of 16 positions that the next item begins with, in a cache of so many a head; of a split step."""
        assert self.following is not None
        kv, piece = self.following
        return kv * blocks + piece * PIECE_BLOCKS

    def pieces(self) -> Iterator[Value]:
        """The pieces of this item, the first one first."""
        if self.piece is not None:
            yield self.piece
        else:
            yield from loop(0, (self.end + (PIECE - 1)) // PIECE)


def items(
    state: Value, task: Value, num_pieces: Value, *, heads: int, kv_heads: int, max_rows: int, split: bool, record: int
) -> Iterator[Item]:
    """The items of one of TASKS tasks, a loop in the machine code."""
    num_rows, position = load(state, 0), load(state, 1)
    if split:
        inner = (position + num_rows + (PIECE - 1)) // PIECE
    else:
        inner = (num_rows + (max_rows - 1)) // max_rows
    count = inner * kv_heads
    for index in loop(count * task // TASKS, count * (task + 1) // TASKS):
        kv, rest = index // inner, index % inner
        first = const(0, i64) if split else rest * max_rows
        piece, following = None, None
        if split:
            after = minimum(index + 1, count - 1)
            piece, following = rest, (after // inner, after % inner)
        sizes = (task, heads, heads // kv_heads, max_rows, record, num_pieces)
        yield Item(*sizes, num_rows, position, kv, first, piece, following)


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
