"""One row of the embedding table, read from tile order: x[row] = table[tokens[row]].  One task is one row.

The table may be the tied head's weight, so it lies in that matmul's order and is in memory once.  Meaning: the value of
QTensor.dequantize, scale * (code - zero - zeros) + min, each operation rounded to f32; dense tables widen exactly.
Columns of x beyond K are not written.  Token ids must lie in the table; the caller checks them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Operand,
    Pointer,
    Value,
    bitcast,
    convert,
    extract,
    f32,
    i32,
    i64,
    load,
    loop,
    splat,
    store,
    u8,
    u32,
)
from lutra.compiler.launch import Step
from lutra.errors import KernelError
from lutra.formats.format import Format
from lutra.kernels.tiles import CHUNK, PAIR, TiledWeight
from lutra.kernels.unpack import load_as, take_quad

QUADS = CHUNK // 4


@kernel
def embed_dense(
    codes: Pointer[u8],
    tokens: Pointer[i64],
    x: Pointer[f32],
    padded_k: i64,
    k: i64,
    x_stride: i64,
    task: i64,
    *,
    dtype,
):
    """A row of a dense table: numbers 32 apart."""
    token = load(tokens, task)
    first = (token // PAIR) * padded_k * PAIR + token % PAIR
    for column in loop(0, k):
        store(x, task * x_stride + column, convert(load_as(codes, first + column * PAIR, dtype), f32))


@kernel
def embed_mad(
    codes: Pointer[u8],
    scales: Pointer[u8],
    zeros: Pointer[u8],
    mins: Pointer[u8],
    tokens: Pointer[i64],
    x: Pointer[f32],
    chunks: i64,
    whole_chunks: i64,
    x_stride: i64,
    task: i64,
    *,
    format,
    tail,
):
    """A row of a quantised table: words 128 bytes apart.

    chunks        chunks of 32 weights that a row is stored with
    whole_chunks  K // 32
    tail          K % 32
    """
    token = load(tokens, task)
    row = Row(codes, scales, zeros, mins, token // PAIR, token % PAIR, chunks, format)
    start = task * x_stride
    for chunk in loop(0, whole_chunks):
        for quad in range(QUADS):
            store(x, start + (chunk * CHUNK + 4 * quad), row.values(chunk, quad))
    for k in range(tail):
        store(x, start + (whole_chunks * CHUNK + k), extract(row.values(whole_chunks, k // 4), k % 4))


@dataclass(frozen=True)
class Row:
    """One row of a weight in mad order: pointers, pair and lane of the row, and what its bits mean."""

    codes: Value
    scales: Value
    zeros: Value
    mins: Value
    pair: Value
    lane: Value
    chunks: Value
    format: Format

    def values(self, chunk: Value, quad: int) -> Value:
        """f32x4: weights 4 * quad .. 4 * quad + 3 of a chunk."""
        f = self.format
        at = ((self.pair * self.chunks + chunk) * (f.bits * PAIR) + self.lane) * 4
        words = [bitcast(load(self.codes, at + word * (4 * PAIR), 4), u32) for word in range(f.bits)]
        group = self.sidecar_index(chunk, quad)
        level = convert(take_quad(words, quad, f.bits), i32) - f.zero
        if f.offset == "zeros":
            level = level - splat(convert(load(self.zeros, group), i32), 4)
        value = convert(level, f32) * splat(convert(load_as(self.scales, group, f.scale_dtype), f32), 4)
        if f.offset == "mins":
            value = value + splat(convert(load_as(self.mins, group, f.scale_dtype), f32), 4)
        return value

    def sidecar_index(self, chunk: Value, quad: int) -> Operand:
        """Where the scale of a quad's group stands."""
        size = self.format.group_size
        if size == 0:
            return self.pair * PAIR + self.lane
        group = (chunk * CHUNK + 4 * quad) // size
        return (self.pair * (self.chunks * CHUNK // size) + group) * PAIR + self.lane


def bind(table: TiledWeight, tokens: np.ndarray, x: np.ndarray, *, isa: str | None = None) -> Step:
    """Bind x[row] = table[tokens[row]] to buffers.

    table    mad or dense order, [vocab, hidden]
    tokens   int64 [rows]
    x        f32 [rows, stride >= K]
    Raises KernelError when the buffers do not fit the table.
    """
    if x.ndim != 2 or x.shape[1] < table.k or len(tokens) < len(x):
        raise KernelError(
            f"expected x of at least {table.k} columns and a token for each of its rows, got x {x.shape} and "
            f"{len(tokens)} tokens; allocate both for the same rows"
        )
    common = dict(codes=table.codes, tokens=tokens, x=x, x_stride=x.shape[1])
    if table.format is None:
        launch = embed_dense.bind(dict(common, padded_k=table.padded_k, k=table.k), isa, dtype=table.dtype)
        return Step(launch, 1, 1)
    if table.order != "mad":
        raise KernelError(f"expected an embedding table in mad or dense order, got {table.order}; use tile_mad")
    sidecars = dict(scales=table.scales, zeros=table.zeros, mins=table.mins)
    sizes = dict(chunks=table.padded_k // CHUNK, whole_chunks=table.k // CHUNK)
    launch = embed_mad.bind({**common, **sidecars, **sizes}, isa, format=table.format, tail=table.k % CHUNK)
    return Step(launch, 1, 1)
