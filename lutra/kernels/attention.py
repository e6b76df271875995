"""Causal attention of one step's queries over a KV cache of floats, with grouped heads.

Work is cut as pieces.py says.  Of a query and a piece of 256 positions, 16 positions in lanes:

    s     = (q[0] * k[0] + q[1] * k[1] + ...) * (log2(e) * scale), one after the other
    m     = max s                      positions after the row's own do not take part
    p     = 2**(s - m)
    l     = p added up, 16 lanes
    out   = p[0] * v[0] + p[1] * v[1] + ..., one after the other

then pieces are merged, and y = out / sum of l.  What the cache holds after the row's position does not matter as long
as it is finite.  A register tile is some queries times some vectors, of positions in s and of elements in out: a vector
of the cache is converted once for all queries of the tile.

Source    Milakov and Gimelshein, Online normalizer calculation for softmax, arXiv 1805.02867; and those of pieces.py
"""

import numpy as np

from lutra import fused
from lutra.compiler import targets
from lutra.compiler.kernel import Kernel, kernel
from lutra.compiler.language import Pointer, f32, i64
from lutra.compiler.launch import Step
from lutra.compiler.types import DType
from lutra.errors import KernelError
from lutra.formats.reduce import NUM_LANES, tree_sum
from lutra.kernels.buffers import check_state
from lutra.kernels.float_passes import NUM_SUMS, Shape, gather, score, weigh
from lutra.kernels.items import items
from lutra.kernels.pieces import (
    PIECE,
    Part,
    Room,
    allocate_room,
    cut_for,
    empty_part,
    factor,
    lanes_spec,
    largest_divisor,
    merge_spec,
    scores_spec,
    tile_for,
    weights_spec,
)
from lutra.kernels.records import merged_pieces, steps_of
from lutra.kernels.rope import BLOCK, FLOATS, STRIDE, float_name, padded


def attention_spec(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, position: int, scale: float | None = None
) -> np.ndarray:
    """Attention in NumPy, in the kernel's order; q . k and the weighted values round a product and a sum once.

    q              f32 [M, heads, D]       rows at position, position + 1, ...
    keys, values   as in rope.py
    returns        f32 [M, heads, D]
    """
    _, heads, head_dim = q.shape
    kv = np.arange(heads) // (heads // len(keys))
    by = np.float32(factor(scale, head_dim))
    return np.stack([_row_spec(row, keys[kv], values[kv], position + i, by) for i, row in enumerate(q)])


def _row_spec(q: np.ndarray, keys: np.ndarray, values: np.ndarray, position: int, scale: np.float32) -> np.ndarray:
    total = empty_part(*q.shape[:1], NUM_SUMS, q.shape[1])
    for first in range(0, position + 1, PIECE):
        k = keys[:, first // BLOCK : (first + PIECE) // BLOCK].astype(np.float32)  # [heads, blocks, D, 16]
        v = values[:, first : first + PIECE, : q.shape[1]].astype(np.float32)  # [heads, n, D]
        total = merge_spec(total, _part_spec(q, k, v, first, position, scale))
    return total.out / tree_sum(total.sums[:, 0])[:, None]


def _part_spec(q: np.ndarray, k: np.ndarray, v: np.ndarray, first: int, position: int, scale: np.float32) -> Part:
    """One piece, whose first position is `first`."""
    dot = np.zeros((len(k), k.shape[1], BLOCK), np.float32)
    for d in range(q.shape[1]):
        dot = fused.fma(q[:, d, None, None], k[:, :, d], dot)
    m, p = weights_spec(scores_spec(dot.reshape(len(q), -1) * scale, first, position))
    out = np.zeros_like(q)
    for j in range(min(v.shape[1], position + 1 - first)):
        out = fused.fma(p[:, j, None], v[:, j], out)
    return Part(m, lanes_spec(p)[:, None], out)


def _make(cache: DType) -> Kernel:
    """The kernel for one element type of the cache."""

    @kernel
    def attention(
        q: Pointer[f32],
        keys: Pointer[cache],
        values: Pointer[cache],
        scores: Pointer[f32],
        parts: Pointer[f32],
        y: Pointer[f32],
        state: Pointer[i64],
        q_stride: i64,
        y_stride: i64,
        blocks: i64,
        pieces: i64,
        scale: f32,
        task: i64,
        *,
        heads,
        kv_heads,
        head_dim,
        rows,
        tile,
        together,
        span,
        split,
        cache_dtype,
    ):
        """y of the items of a task; or, split, the records of their pieces."""
        shape = Shape(head_dim, tile, together, span)
        sizes = dict(heads=heads, kv_heads=kv_heads, max_rows=rows, split=split, record=shape.record)
        for item in items(state, task, pieces, **sizes):
            for piece in merged_pieces(item, parts, y, y_stride, NUM_SUMS, head_dim):
                score(item, piece, shape, q, q_stride, keys, blocks, scores, scale, values)
                weigh(item, piece, shape, scores, parts)
                gather(item, piece, shape, values, blocks, scores, parts, keys)

    return attention


KERNELS = {name: _make(dtype) for name, (dtype, _) in FLOATS.items()}

# (queries of a tile, sums of 16 lanes a tile keeps in registers)
TILES = {"avx512": (16, 16), "avxvnni": (4, 4), "avx2": (4, 4), "portable": (2, 2)}


def allocate(keys: np.ndarray, rows: int, heads: int) -> Room:
    """Room for steps of at most `rows` rows over caches of this shape."""
    kv_heads, blocks, head_dim, _ = keys.shape
    cut = cut_for(rows, heads // kv_heads, blocks * BLOCK)
    return allocate_room(cut, heads, kv_heads, NUM_SUMS, padded(head_dim))


def bind(
    q: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    y: np.ndarray,
    state: np.ndarray,
    *,
    heads: int,
    room: Room | None = None,
    scale: float | None = None,
    isa: str | None = None,
    tile: int | None = None,
    sums: int | None = None,
) -> list[Step]:
    """y = attention of rows 0 .. state[0] - 1, which stand at positions state[1] + row of the cache.

    q              f32 [rows, stride]     rotated query heads side by side (the front of the q | k | v rows)
    keys, values   f16, bf16 or f32       one layer's cache, holding every position up to the last row's
    y              f32 [rows, stride]     heads side by side
    room           of `allocate`; default: one for all rows of q
    scale          factor of the scores   default 1 / sqrt(D)
    tile, sums     change the speed, never the result
    Raises KernelError when shapes disagree.
    """
    _check(q, keys, values, y, heads)
    check_state(state)
    kv_heads, blocks, head_dim, _ = keys.shape
    room = room or allocate(keys, len(q), heads)
    name, cut, group = float_name(keys), room.cut, heads // kv_heads
    wanted, registers = TILES.get(targets.choose(isa).vectors, TILES["portable"])
    tile, sums = tile_for(cut, group, tile or wanted), sums or registers
    args = {"q": q, "keys": keys, "values": values, "scores": room.scores, "parts": room.parts, "y": y, "state": state}
    args |= {"q_stride": q.shape[1], "y_stride": y.shape[1], "blocks": blocks, "pieces": cut.pieces}
    args |= {"scale": factor(scale, head_dim)}
    static = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "rows": cut.rows, "split": cut.split}
    static |= {"tile": tile, "together": largest_divisor(STRIDE // BLOCK, sums // tile), "cache_dtype": name}
    static |= {"span": largest_divisor(padded(head_dim) // NUM_LANES, sums // tile)}
    launch = KERNELS[name].bind(args, isa, **static)
    return steps_of(launch, room, y, state, heads=heads, head_dim=head_dim, num_sums=NUM_SUMS, isa=isa)


def _check(q: np.ndarray, keys: np.ndarray, values: np.ndarray, y: np.ndarray, heads: int) -> None:
    kv_heads, blocks, head_dim, _ = keys.shape
    if heads % kv_heads:
        raise KernelError(f"expected heads a multiple of kv_heads={kv_heads}, got {heads}; check the model's config")
    if min(q.shape[1], y.shape[1]) < heads * head_dim or len(y) < len(q):
        raise KernelError(
            f"expected rows of at least {heads * head_dim} columns, and as many of y as of q, got q {q.shape} and "
            f"y {y.shape}; widen them"
        )
    if (
        values.shape != (kv_heads, blocks * BLOCK, padded(head_dim))
        or values.dtype != keys.dtype
        or blocks % (STRIDE // BLOCK)
    ):
        raise KernelError(f"keys {keys.shape} and values {values.shape} do not fit; make both with rope.allocate_cache")
