"""One row of the embedding table, read from tile order: x[row] = table[tokens[row]].  One task is one row.

The table may be the tied head's weight, so it lies in that matmul's order and is in memory once.  Meaning: the value of
QTensor.dequantize, scale * (code - zero - zeros) + min, each operation rounded to f32; dense tables widen exactly.
Columns of x beyond K are not written.  Token ids must lie in the table; the caller checks them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
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
from lutra.kernels import embed_trit
from lutra.kernels.tiles import CHUNK, PAIR, ROWS, TiledWeight
from lutra.kernels.tiles_lut import TILE
from lutra.kernels.unpack import load_as, take_quad

QUADS = CHUNK // 4
ORDERS = ("mad", "trit5", "dense")  # that a row can be taken out of


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
def embed_codes(
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
    order,
    tail,
):
    """A row of a quantised table, four weights at a time.

    chunks        chunks of 32 weights that a row is stored with
    whole_chunks  K // 32
    tail          K % 32
    """
    token = load(tokens, task)
    row = Row(codes, scales, zeros, mins, token, chunks, format, QUAD_CODES[order])
    start = task * x_stride
    for chunk in loop(0, whole_chunks):
        for quad in range(QUADS):
            store(x, start + (chunk * CHUNK + 4 * quad), row.values(chunk, quad))
    for k in range(tail):
        store(x, start + (whole_chunks * CHUNK + k), extract(row.values(whole_chunks, k // 4), k % 4))


def mad_codes(codes: Value, token: Value, chunks: Value, chunk: Value, quad: int, bits: int) -> Value:
    """u8x4 out of mad order: the words of a row are 128 bytes apart."""
    at = (((token // PAIR) * chunks + chunk) * (bits * PAIR) + token % PAIR) * 4
    words = [bitcast(load(codes, at + word * (4 * PAIR), 4), u32) for word in range(bits)]
    return take_quad(words, quad, bits)


def lut_codes(codes: Value, token: Value, chunks: Value, chunk: Value, quad: int, bits: int) -> Value:
    """u8x4 out of lut order (tiles_lut.py): one nibble per plane, its bit j for weight j."""
    part, lane = token % TILE // ROWS, token % ROWS
    vectors = (((token // TILE) * chunks + chunk) * (QUADS // 2) + quad // 2) * bits
    total = None
    for plane in range(bits):
        slot = part * bits + plane
        byte = load(codes, (vectors + slot // 4) * (4 * ROWS) + lane * 4 + slot % 4)
        nibble = convert(byte >> 4 if quad % 2 else byte & 15, u32)
        bit = (nibble * SPREAD & 0x01010101) << plane
        total = bit if total is None else total | bit
    return bitcast(total, u8)


SPREAD = 1 | 1 << 7 | 1 << 14 | 1 << 21  # times a nibble: bit j arrives at bit 8 j, no two meet
QUAD_CODES = {"mad": mad_codes, "lut": lut_codes}


@dataclass(frozen=True)
class Row:
    """One row of a quantised table: pointers, which row, what its bits mean, and how to find them."""

    codes: Value
    scales: Value
    zeros: Value
    mins: Value
    token: Value
    chunks: Value
    format: Format
    quad_codes: Callable[..., Value]

    def values(self, chunk: Value, quad: int) -> Value:
        """f32x4: weights 4 * quad .. 4 * quad + 3 of a chunk."""
        f = self.format
        group = self.sidecar_index(chunk, quad)
        level = convert(self.quad_codes(self.codes, self.token, self.chunks, chunk, quad, f.bits), i32) - f.zero
        if f.offset == "zeros":
            level = level - splat(convert(load(self.zeros, group), i32), 4)
        value = convert(level, f32) * splat(convert(load_as(self.scales, group, f.scale_dtype), f32), 4)
        if f.offset == "mins":
            value = value + splat(convert(load_as(self.mins, group, f.scale_dtype), f32), 4)
        return value

    def sidecar_index(self, chunk: Value, quad: int) -> Value:
        """Where the scale of a quad's group stands; both orders keep it by pairs."""
        size = self.format.group_size
        if size == 0:
            return self.token
        group = (chunk * CHUNK + 4 * quad) // size
        return ((self.token // PAIR) * (self.chunks * CHUNK // size) + group) * PAIR + self.token % PAIR


def bind(table: TiledWeight, tokens: np.ndarray, x: np.ndarray, *, isa: str | None = None) -> Step:
    """Bind x[row] = table[tokens[row]] to buffers.

    table    mad, lut, trit5 or dense order, [vocab, hidden]
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
    if table.order == "trit5":
        return embed_trit.bind(table, tokens, x, isa=isa)
    if table.order not in QUAD_CODES:
        raise KernelError(f"expected a table in mad, lut, trit5 or dense order, got {table.order}; use tile_mad")
    sidecars = dict(scales=table.scales, zeros=table.zeros, mins=table.mins)
    sizes = dict(chunks=table.padded_k // CHUNK, whole_chunks=table.k // CHUNK)
    launch = embed_codes.bind(
        {**common, **sidecars, **sizes}, isa, format=table.format, order=table.order, tail=table.k % CHUNK
    )
    return Step(launch, 1, 1)
