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

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lutra.formats.reduce import NUM_LANES
from lutra.kernels.buffers import aligned
from lutra.kernels.exp2 import LOG2_E, exp2_spec
from lutra.kernels.rope import BLOCK

PIECE = 256  # positions; merging takes 3 % (f16) to 7 % (int4) of attention, and twice as many gained nothing
PIECE_BLOCKS = PIECE // BLOCK
LOWEST, HIGHEST = -1e30, 1e30  # of scores; NaN counts as LOWEST, and a position after the row's own as -infinity
TASKS = 32  # that items are dealt to; each has scratch of its own, and much of it would push the cache out of L2
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
