"""Attention over a KV cache of int8 or int4 codes, in integers: what attention.py does for floats.

Queries come as integers from rope_codes.py; attention weights become integers here, 64 positions at a time, relative to
the largest.  Codes are multiplied with the bytes of either by dot4, so sums are exact and a cached byte is touched once
per query and byte, not once per float.  Work is cut as pieces.py says.  Of a query and a piece, f the value of 1 of the
query times log2(e) * scale:

    s     = f32(q . codes) * (key_scale * f) + key_minimum * (f * sum of q)        q . codes = 256 * high + low
    m     = max s, p = 2**(s - m)      positions after the row's own do not take part
    l     = p added up, 16 lanes
    b     = p * n added up, 16 lanes   n the minimum of a value

and for each 64 of its positions, one after the other:

    w     = p * value_scale, as integers of largest magnitude `most`: w = u * integer, u = max w / most
    out   = out + f32(w . codes) * u

Pieces are merged, and y = (out + sum b) / sum l.

Source    as attention.py; integers on both sides: SageAttention, arXiv 2410.02367, section 4
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from lutra.compiler import targets
from lutra.compiler.kernel import kernel
from lutra.compiler.language import Pointer, f16, f32, i32, i64, u8
from lutra.compiler.launch import Step
from lutra.errors import KernelError
from lutra.formats.reduce import tree_sum
from lutra.kernels.buffers import aligned, check_state
from lutra.kernels.cache import BLOCK, STRIDE, Cache, Queries, keys_of, scales_of, values_of
from lutra.kernels.code_passes import NUM_SUMS, STRIDES, Rows, Shape, Weights, gather, score, weigh
from lutra.kernels.codes import CODES, SMALLEST, integers_spec
from lutra.kernels.items import items
from lutra.kernels.pieces import (
    PIECE,
    PIECE_BLOCKS,
    TASKS,
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
from lutra.kernels.rope_codes import check_queries


def attention_spec(
    queries: Queries, cache: Cache, rows: int, position: int, heads: int, scale: float | None = None
) -> np.ndarray:
    """Attention of the first `rows` rows, which stand at position, position + 1, ...: f32 [rows, heads, D]."""
    by = np.float32(factor(scale, cache.head_dim))
    kv = np.arange(heads) // (heads // cache.kv_heads)

    def scores(row: int, step: int) -> np.ndarray:
        unit = queries.scales[row, :, 0] * by  # [heads]
        offset = unit * queries.scales[row, :, 1]
        ks, km = scales_of(cache.key_scales, step)[:, kv]
        found = products_spec(queries.codes[row, :, :, : cache.head_dim], keys_of(cache, step)[kv])
        return found * (ks * unit[:, None]) + km * offset[:, None]

    return np.stack([row_spec(cache, position + row, kv, partial(scores, row)) for row in range(rows)])


Scores = Callable[[int], np.ndarray]  # of a row, from the number of a block of 64 positions: f32 [heads, 64]


def row_spec(cache: Cache, position: int, kv: np.ndarray, scores: Scores) -> np.ndarray:
    """Attention of one row with known scores: f32 [heads, D]; kv is the key/value head of each head."""
    total = empty_part(len(kv), NUM_SUMS, cache.head_dim)
    for first in range(0, position + 1, PIECE):
        total = merge_spec(total, _part_spec(cache, first, position, kv, scores))
    l, b = (tree_sum(total.sums[:, i]) for i in range(NUM_SUMS))  # noqa: E741  the letter of the papers
    return (total.out + b[:, None]) / l[:, None]


def _part_spec(cache: Cache, first: int, position: int, kv: np.ndarray, scores: Scores) -> Part:
    """One piece, whose first position is `first`."""
    codes, heads = CODES[cache.kind], len(kv)
    steps = range(first // STRIDE, min(first + PIECE, position // STRIDE * STRIDE + STRIDE) // STRIDE)
    m, p = weights_spec(scores_spec(np.concatenate([scores(step) for step in steps], 1), first, position))
    vs, vm = np.concatenate([scales_of(cache.value_scales, step)[:, kv] for step in steps], 2)
    sums = np.stack([lanes_spec(p), lanes_spec(p * vm)], 1)
    out = np.zeros((heads, cache.head_dim), np.float32)
    for step, w in zip(steps, np.split(p * vs, len(steps), 1), strict=True):
        largest = np.maximum(w.max(1), np.float32(SMALLEST))
        weights = integers_spec(w, np.float32(codes.most) / largest, codes.parts)  # [parts, heads, 64]
        unit = largest * np.float32(1 / codes.most)
        v = values_of(cache, step)[kv].swapaxes(1, 2)  # [heads, D, 64]
        out = out + products_spec(weights.transpose(1, 0, 2), v) * unit[:, None]
    return Part(m, sums, out)


def products_spec(parts: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """i8 [heads, parts, n] times codes [heads, m, n], the bytes put together: f32 [heads, m]."""
    sums = np.einsum("hpn,hmn->phm", parts.astype(np.int32), codes.astype(np.int32)).astype(np.float32)
    return sums[0] if len(sums) == 1 else sums[0] * np.float32(256) + sums[1]


# ---- the kernel -----------------------------------------------------------------------------------------------------


@kernel
def attention_codes(
    query_codes: Pointer[i32],
    query_scales: Pointer[f32],
    keys: Pointer[u8],
    values: Pointer[u8],
    key_scales: Pointer[f16],
    value_scales: Pointer[f16],
    scores: Pointer[f32],
    weights: Pointer[i32],
    units: Pointer[f32],
    wide_scales: Pointer[f32],
    parts: Pointer[f32],
    y: Pointer[f32],
    state: Pointer[i64],
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
    kind,
):
    """y of the items of a task; or, split, the records of their pieces.

    query_codes, weights   bytes, four a word
    together, span         vectors of codes that meet the queries of a tile at once: of positions, of elements
    """
    shape = Shape(CODES[kind], heads, head_dim, tile, together, span)
    queries = Rows(query_codes, query_scales, scale)
    integer_weights = Weights(scores, weights, units, parts, wide_scales)
    sizes = dict(heads=heads, kv_heads=kv_heads, max_rows=rows, split=split, record=shape.record)
    for item in items(state, task, pieces, **sizes):
        for piece in merged_pieces(item, parts, y, y_stride, NUM_SUMS, head_dim):
            block = item.kv * blocks + piece * PIECE_BLOCKS
            score(item, piece, shape, queries, keys, (key_scales, value_scales), block, scores, values)
            weigh(item, piece, shape, integer_weights, value_scales, block)
            gather(item, piece, shape, integer_weights, values, block, keys, blocks)


@dataclass(frozen=True)
class CodesRoom(Room):
    """And what the weights of a piece become.

    weights  i8 [TASKS, queries of a block, parts, PIECE]
    units    f32 [TASKS, queries of a block, PIECE / 64]     the values of 1
    scales   f32 [TASKS, 2, PIECE]                           scales and minima of values
    """

    weights: np.ndarray
    units: np.ndarray
    scales: np.ndarray


# (queries of a tile, sums of 16 lanes a tile keeps in registers)
TILES = {"avx512": (8, 16), "avxvnni": (2, 4), "avx2": (2, 4), "portable": (2, 4)}


def allocate(cache: Cache, rows: int, heads: int) -> CodesRoom:
    """Room for steps of at most `rows` rows over caches of this shape."""
    codes, group = CODES[cache.kind], heads // cache.kv_heads
    cut = cut_for(rows, group, cache.keys.shape[1] * BLOCK)
    room = allocate_room(cut, heads, cache.kv_heads, NUM_SUMS, codes.value_columns(cache.head_dim))
    queries = (TASKS, cut.rows * group)
    weights, units = aligned((*queries, codes.parts, PIECE), np.int8), aligned((*queries, STRIDES), np.float32)
    scales = aligned((TASKS, 2, PIECE), np.float32)
    return CodesRoom(cut, room.scores, room.parts, weights, units, scales)


def bind(
    queries: Queries,
    cache: Cache,
    y: np.ndarray,
    state: np.ndarray,
    *,
    heads: int,
    room: CodesRoom | None = None,
    scale: float | None = None,
    isa: str | None = None,
    tile: int | None = None,
    sums: int | None = None,
) -> list[Step]:
    """y = attention of rows 0 .. state[0] - 1, which stand at positions state[1] + row of the cache.

    queries      of rope_codes.bind, the step before
    y            f32 [rows, stride]     heads side by side
    room         of `allocate`; default: one for all rows of y
    scale        factor of the scores   default 1 / sqrt(D)
    tile, sums   change the speed, never the result
    Raises KernelError when shapes disagree.
    """
    check_step(cache, y, state, heads)
    check_queries(queries, cache, len(y), heads)
    room = room or allocate(cache, len(y), heads)
    args, static = bind_pieces(cache, y, state, heads, room, isa, tile, sums)
    args |= dict(query_codes=queries.codes.view(np.int32), query_scales=queries.scales)
    launch = attention_codes.bind(args | dict(scale=factor(scale, cache.head_dim)), isa, **static)
    return steps_of(launch, room, y, state, heads=heads, head_dim=cache.head_dim, num_sums=NUM_SUMS, isa=isa)


def bind_pieces(
    cache: Cache, y: np.ndarray, state: np.ndarray, heads: int, room: CodesRoom, isa: str | None, tile: int | None,
    sums: int | None,
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """Arguments and static parameters of everything but queries."""
    head_dim, kv_heads = cache.head_dim, cache.kv_heads
    kind, cut = CODES[cache.kind], room.cut
    wanted, registers = TILES.get(targets.choose(isa).vectors, TILES["portable"])
    wanted = min(wanted, registers // (kind.per_byte * kind.parts))
    tile = tile_for(cut, heads // kv_heads, tile or wanted)
    vectors = (sums or registers) // (tile * kind.parts)
    args = dict(keys=cache.keys, values=cache.values, key_scales=cache.key_scales, value_scales=cache.value_scales)
    args |= dict(scores=room.scores, weights=room.weights.view(np.int32), units=room.units)
    args |= dict(wide_scales=room.scales, parts=room.parts)
    args |= dict(y=y, state=state, y_stride=y.shape[1], blocks=cache.keys.shape[1], pieces=cut.pieces)
    static = dict(heads=heads, kv_heads=kv_heads, head_dim=head_dim, rows=cut.rows, split=cut.split, kind=cache.kind)
    static |= dict(tile=tile, together=largest_divisor((kind.group or STRIDE) // BLOCK, vectors))
    static |= dict(span=largest_divisor(cache.values.shape[2], vectors // kind.per_byte))
    return args, static


def check_step(cache: Cache, y: np.ndarray, state: np.ndarray, heads: int) -> None:
    """Raise KernelError unless y has room for so many heads, a multiple of the cache's."""
    if heads % cache.kv_heads or y.shape[1] < heads * cache.head_dim:
        raise KernelError(
            f"expected heads a multiple of kv_heads={cache.kv_heads} and rows of at least {heads * cache.head_dim} "
            f"columns, got {heads} heads and y {y.shape}; check the model's config"
        )
    check_state(state)
