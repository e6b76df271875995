"""Items of attention's work as kernels walk through them: queries of a block of rows with one key/value head.

Which there are, a `Cut` of pieces.py says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lutra.compiler.language import Value, const, convert, i32, i64, load, loop, maximum, minimum, select, splat
from lutra.kernels.pieces import HIGHEST, LOWEST, PIECE, PIECE_BLOCKS, TASKS
from lutra.kernels.rope import BLOCK
from lutra.kernels.softmax import iota

# A split step asks for values while it reads keys, and for the next item's keys while it reads values, in the second
# cache, which waits for more lines at once than the first; the first is asked for NEAR bytes ahead
NEAR = 1024


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

    def whole_tiles(self, tile: int) -> Value:
        """Queries there are, rounded up to tiles: those beyond are the last row's, over again."""
        return (self.num_slots + (tile - 1)) // tile * tile

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

    def seen(self, row: Value, piece: Value, block: Value, score: Value) -> Value:
        """Scores of a block of 16 positions of a piece as a row takes them; -infinity for those after its own."""
        ahead = self.position + row - piece * PIECE - block * BLOCK
        return select(splat(convert(ahead, i32), BLOCK) >= iota(BLOCK), held(score), float("-inf"))

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


def held(score: Value) -> Value:
    """A score as `pieces.scores_spec` holds it."""
    return minimum(maximum(score, LOWEST), HIGHEST)
