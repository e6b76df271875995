"""Causal attention of one step's queries over the KV cache, with grouped heads.

A task is one row and `tile` query heads that share a key/value head.  Positions are read in blocks of 16, from 0 to the
row's own, with a running maximum; blocks are absolute, so a prompt gives the same bits whole, in chunks or token by
token.  Per block and head:

    s     = scale * (q . k) for 16 positions in lanes, summed over d in 4 strided partial sums, (p0 + p2) + (p1 + p3)
    m'    = max(m, max s)              positions after the row's own do not take part
    p     = e**(s - m'), c = e**(m - m')
    l     = l * c + p                  16 lanes, added up by the tree at the end
    out   = out * c + p[0] * v[0] + ... + p[15] * v[15], one after the other

and at the end y = out / l.  What the cache holds after the row's position does not matter as long as it is finite.

Source    Milakov and Gimelshein, Online normalizer calculation for softmax, arXiv 1805.02867;
          Dao et al., FlashAttention, arXiv 2205.14135
"""

import numpy as np

from lutra.compiler import targets
from lutra.compiler.kernel import Kernel, kernel
from lutra.compiler.language import (
    Pointer,
    Value,
    const,
    convert,
    f32,
    i32,
    i64,
    load,
    loop,
    maximum,
    prefetch,
    reduce_add,
    reduce_max,
    select,
    shuffle,
    splat,
    store,
    var,
)
from lutra.compiler.launch import Step
from lutra.compiler.types import DType
from lutra.errors import KernelError
from lutra.formats.reduce import NUM_LANES, tree_sum
from lutra.kernels.buffers import check_state
from lutra.kernels.elementwise import exp, exp_spec
from lutra.kernels.rope import BLOCK, FLOATS, chunks, float_name, padded
from lutra.kernels.softmax import iota

_LOWEST = -1e30  # a running maximum before the first score
AHEAD = 1  # blocks, 4 KiB of f16 keys 128 wide: hardware prefetch loses the thread where keys and values end
_PARTIALS = 4  # strided sums over d, enough to hide the latency of an addition


def attention_spec(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, position: int, scale: float | None = None
) -> np.ndarray:
    """Attention in NumPy, in the kernel's order.

    q              f32 [M, heads, D]       rows at position, position + 1, ...
    keys, values   as in rope.py
    returns        f32 [M, heads, D]
    """
    _, heads, head_dim = q.shape
    kv = np.arange(heads) // (heads // len(keys))
    factor = np.float32(1 / np.sqrt(head_dim) if scale is None else scale)
    return np.stack([_row_spec(row, keys, values, kv, position + i, factor) for i, row in enumerate(q)])


def _row_spec(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, kv: np.ndarray, position: int, scale: np.float32
) -> np.ndarray:
    heads, head_dim = q.shape
    m = np.full((heads, 1), _LOWEST, np.float32)
    l = np.zeros((heads, BLOCK), np.float32)  # noqa: E741  the letter of both papers
    out = np.zeros((heads, head_dim), np.float32)
    for block in range(position // BLOCK + 1):
        seen = block * BLOCK + np.arange(BLOCK) <= position
        k = keys[kv, block].astype(np.float32)  # [heads, D, 16]
        v = values[kv, block * BLOCK : (block + 1) * BLOCK, :head_dim].astype(np.float32)  # [heads, 16, D]
        partial = np.zeros((_PARTIALS, heads, BLOCK), np.float32)
        for d in range(head_dim):
            partial[d % _PARTIALS] += q[:, d, None] * k[:, d]
        score = ((partial[0] + partial[2]) + (partial[1] + partial[3])) * scale
        score = np.where(seen, score, np.float32(_LOWEST))
        new = np.maximum(m, score.max(1, keepdims=True))
        p = np.where(seen, exp_spec(score - new), np.float32(0))
        c = exp_spec(m - new)
        m, l, out = new, l * c + p, out * c  # noqa: E741
        for j in range(BLOCK):
            out = out + p[:, j, None] * v[:, j]
    return out / tree_sum(l)[:, None]


def _make(cache: DType) -> Kernel:
    """The kernel for one element type of the cache."""

    @kernel
    def attention(
        q: Pointer[f32],
        keys: Pointer[cache],
        values: Pointer[cache],
        y: Pointer[f32],
        state: Pointer[i64],
        q_stride: i64,
        y_stride: i64,
        blocks: i64,
        scale: f32,
        task: i64,
        *,
        heads,
        kv_heads,
        head_dim,
        tile,
        span,
        cache_dtype,
    ):
        """y of one row and `tile` heads; y itself holds the unfinished sums between blocks."""
        num_rows = load(state, 0)
        row, piece = task % num_rows, task // num_rows
        position = load(state, 1) + row
        kv = (piece * tile) // (heads // kv_heads)
        start = piece * (tile * head_dim)
        target = row * y_stride + start
        states = [_Head() for _ in range(tile)]
        for i, lanes in chunks(tile * head_dim):
            store(y, target + i, const(0.0, f32, lanes))

        for block in loop(0, position // BLOCK + 1):
            at = (kv * blocks + block) * (head_dim * BLOCK)
            scores = _scores(q, row * q_stride + start, keys, at, head_dim, tile)
            seen = splat(convert(position - block * BLOCK, i32), BLOCK) >= iota(BLOCK)
            parts = [head.update(score * splat(scale, BLOCK), seen) for head, score in zip(states, scores, strict=True)]
            at = (kv * blocks + block) * (BLOCK * padded(head_dim))
            _accumulate(y, target, parts, values, at, head_dim, span)

        for h, head in enumerate(states):
            total = splat(reduce_add(head.l), BLOCK)
            for i, lanes in chunks(head_dim):
                at = target + (h * head_dim + i)
                store(y, at, load(y, at, lanes) / _lanes(total, lanes))

    return attention


class _Head:
    """What one query head carries from block to block."""

    def __init__(self) -> None:
        self.m = var(const(_LOWEST, f32, BLOCK))  # running maximum, the same in every lane
        self.l = var(const(0.0, f32, BLOCK))

    def update(self, score: Value, seen: Value) -> tuple[Value, Value]:
        """Fold 16 scores in; return their weights p and the correction c of everything before."""
        score = select(seen, score, _LOWEST)
        old = self.m.get()
        new = maximum(old, splat(reduce_max(score), BLOCK))
        p = select(seen, exp(score - new), 0.0)
        c = exp(old - new)
        self.m.set(new)
        self.l.set(self.l.get() * c + p)
        return p, c


def _scores(q: Value, start: Value, keys: Value, at: Value, head_dim: int, tile: int) -> list[Value]:
    """q . k of `tile` heads and the 16 positions of a block."""
    sums = [[var(const(0.0, f32, BLOCK)) for _ in range(_PARTIALS)] for _ in range(tile)]

    def add(d: Value | int, i: int) -> None:
        here = at + (d * BLOCK + i * BLOCK)
        _fetch(keys, here, i, head_dim)
        k = convert(load(keys, here, BLOCK), f32)
        for h in range(tile):
            sums[h][i % _PARTIALS] += splat(load(q, start + d + (h * head_dim + i)), BLOCK) * k

    whole = head_dim // _PARTIALS * _PARTIALS
    for d in loop(0, whole, _PARTIALS):
        for i in range(_PARTIALS):
            add(d, i)
    for i in range(whole, head_dim):
        add(0, i)
    return [(p0.get() + p2.get()) + (p1.get() + p3.get()) for p0, p1, p2, p3 in sums]


def _accumulate(
    y: Value, target: Value, parts: list[tuple[Value, Value]], values: Value, at: Value, head_dim: int, span: int
) -> None:
    """out = out * c + p[0] * v[0] + ... in place, `span` vectors of every head in registers at a time."""

    def add(start: Value | int, group: list[tuple[int, int]]) -> None:
        places = [(h, i, lanes) for h in range(len(parts)) for i, lanes in group]
        first = [target + start + (h * head_dim + i) for h, i, _ in places]
        out = {
            (h, i): load(y, place, lanes) * _lanes(parts[h][1], lanes)
            for (h, i, lanes), place in zip(places, first, strict=True)
        }
        for j in range(BLOCK):
            weights = [shuffle(p, p, [j] * BLOCK) for p, _ in parts]
            for i, lanes in group:
                here = at + start + (j * padded(head_dim) + i)
                _fetch(values, here, i // NUM_LANES, head_dim)
                v = convert(load(values, here, lanes), f32)
                for h, weight in enumerate(weights):
                    out[h, i] = out[h, i] + _lanes(weight, lanes) * v
        for place, value in zip(first, out.values(), strict=True):
            store(y, place, value)

    width = span * NUM_LANES
    whole = head_dim // width * width
    for start in loop(0, whole, width):
        add(start, chunks(width))
    if whole < head_dim:
        add(0, [(i, lanes) for i, lanes in chunks(head_dim) if i >= whole])


def _fetch(cache: Value, at: Value, i: int, head_dim: int) -> None:
    """Ask for the line that lies AHEAD blocks further on, once for the vectors i that share one."""
    per_line = max(1, 4 // cache.type.dtype.size_bytes)
    if i % per_line == 0:
        prefetch(cache, at + AHEAD * BLOCK * padded(head_dim))


def _lanes(v: Value, lanes: int) -> Value:
    """The first lanes of a vector."""
    return v if lanes == v.type.lanes else shuffle(v, v, range(lanes))


KERNELS = {name: _make(dtype) for name, (dtype, _) in FLOATS.items()}

# (query heads a task takes together, which share the loads of K and V; output vectors a pass keeps in registers).
# 20 heads of 128 on 5, 4096 positions of f16, one thread of a busy Zen 5: (4, 2) 25 GB/s, (4, 4) 23, (2, 4) 18.
TILES = {"avx512": (4, 2), "avxvnni": (2, 1), "avx2": (2, 1), "portable": (2, 1)}


def bind(
    q: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    y: np.ndarray,
    state: np.ndarray,
    *,
    heads: int,
    scale: float | None = None,
    isa: str | None = None,
    tile: int | None = None,
    span: int | None = None,
) -> Step:
    """y = attention of rows 0 .. state[0] - 1, which stand at positions state[1] + row of the cache.

    q              f32 [rows, stride]     rotated query heads side by side (the front of the q | k | v rows)
    keys, values   f16, bf16 or f32       one layer's cache, holding every position up to the last row's
    y              f32 [rows, stride]     heads side by side
    scale          factor of the scores   default 1 / sqrt(D)
    tile, span     change the speed, never the result
    Raises KernelError when shapes disagree.
    """
    kv_heads, blocks, head_dim, _ = keys.shape
    _check(q, keys, values, y, heads)
    check_state(state)
    name = float_name(keys)
    wanted, vectors = TILES.get(targets.choose(isa).isa, TILES["portable"])
    tile = tile or largest_divisor(heads // kv_heads, wanted)
    args = {"q": q, "keys": keys, "values": values, "y": y, "state": state, "q_stride": q.shape[1]}
    args |= {"y_stride": y.shape[1], "blocks": blocks, "scale": head_dim**-0.5 if scale is None else scale}
    launch = KERNELS[name].bind(
        args, isa, heads=heads, kv_heads=kv_heads, head_dim=head_dim, tile=tile, span=span or vectors, cache_dtype=name
    )
    return Step(launch, heads // tile, 1)


def largest_divisor(n: int, limit: int) -> int:
    """The largest divisor of n that is not above `limit`, and 1 for any smaller limit."""
    return max(i for i in range(1, max(limit, 1) + 1) if n % i == 0)


def _check(q: np.ndarray, keys: np.ndarray, values: np.ndarray, y: np.ndarray, heads: int) -> None:
    kv_heads, blocks, head_dim, _ = keys.shape
    if heads % kv_heads:
        raise KernelError(f"expected heads a multiple of kv_heads={kv_heads}, got {heads}; check the model's config")
    if min(q.shape[1], y.shape[1]) < heads * head_dim or len(y) < len(q):
        raise KernelError(
            f"expected rows of at least {heads * head_dim} columns, and as many of y as of q, got q {q.shape} and "
            f"y {y.shape}; widen them"
        )
    if values.shape != (kv_heads, blocks * BLOCK, padded(head_dim)) or values.dtype != keys.dtype:
        raise KernelError(f"keys {keys.shape} and values {values.shape} do not fit; make both with rope.allocate_cache")
