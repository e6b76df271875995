"""One row of an embedding table in trit5 order (tiles_trit.py): what embed.py is for the other orders.

One task is one row.  Meaning: the value of QTensor.dequantize, scale * trit, rounded to f32.
"""

from __future__ import annotations

import numpy as np

from lutra.compiler.kernel import kernel
from lutra.compiler.language import Pointer, Value, convert, f32, i32, i64, load, loop, select, store, u8
from lutra.compiler.launch import Step
from lutra.formats.trits import ENTRIES, NEGATIVE, TRITS, num_steps
from lutra.kernels.tiles import ROWS, TiledWeight
from lutra.kernels.tiles_trit import TILE, VECTOR
from lutra.kernels.unpack import load_as


@kernel
def embed_trits(
    codes: Pointer[u8],
    scales: Pointer[u8],
    tokens: Pointer[i64],
    x: Pointer[f32],
    steps: i64,
    whole_steps: i64,
    x_stride: i64,
    task: i64,
    *,
    format,
    tail,
):
    """Bytes of five trits, 128 apart.

    steps         bytes that a row is stored with
    whole_steps   K // 5
    tail          K % 5
    """
    token = load(tokens, task)
    tile, row = token // TILE, token % TILE
    lane = row // VECTOR * VECTOR + row % ROWS * (VECTOR // ROWS) + row % VECTOR // ROWS
    scale = convert(load_as(scales, token, format.scale_dtype), f32)
    for step in loop(0, whole_steps):
        _store_trits(x, task * x_stride + step * TRITS, load(codes, (tile * steps + step) * TILE + lane), scale, TRITS)
    if tail:
        last = load(codes, (tile * steps + whole_steps) * TILE + lane)
        _store_trits(x, task * x_stride + whole_steps * TRITS, last, scale, tail)


def _store_trits(x: Value, at: Value, byte: Value, scale: Value, count: int) -> None:
    """The first `count` weights of a byte: digits of v + 121 in base 3, less 1."""
    magnitude = convert(byte & (NEGATIVE - 1), i32)
    rest = select(byte >= NEGATIVE, ENTRIES - 1 - magnitude, ENTRIES - 1 + magnitude)
    for i in range(count):
        store(x, at + i, convert(rest % 3 - 1, f32) * scale)
        rest = rest // 3


def bind(table: TiledWeight, tokens: np.ndarray, x: np.ndarray, *, isa: str | None = None) -> Step:
    """Bind x[row] = table[tokens[row]] to buffers that embed.bind has checked."""
    args = dict(
        codes=table.codes, scales=table.scales, tokens=tokens, x=x,
        steps=num_steps(table.k), whole_steps=table.k // TRITS, x_stride=x.shape[1],
    )  # fmt: skip
    return Step(embed_trits.bind(args, isa, format=table.format, tail=table.k % TRITS), 1, 1)
