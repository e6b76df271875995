"""One row of the embedding table, read from tile order: x[row] = table[tokens[row]].  One task is one row.

The table may be the tied head's weight, so it lies in that matmul's order and is in memory once.  Meaning: the value of
QTensor.dequantize, scale * (level - zero - zeros) + min, each operation rounded to f32; dense tables widen exactly.
Columns of x beyond K are not written.  Token ids must lie in the table; the caller checks them.
"""

from __future__ import annotations

from collections.abc import Callable
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
    lookup,
    loop,
    shuffle,
    splat,
    store,
    u8,
    u32,
)
from lutra.compiler.launch import Step
from lutra.errors import KernelError
from lutra.formats.format import Format
from lutra.formats.qtensor import BESIDE
from lutra.kernels import embed_trit
from lutra.kernels.beside import Beside, Row, stored_chunk
from lutra.kernels.levels import Levels, float_unit, join, levels_of, small_float
from lutra.kernels.tiles import CHUNK, PAIR, ROWS, TiledWeight
from lutra.kernels.tiles_lut import TILE
from lutra.kernels.unpack import load_as, take_quad

QUADS = CHUNK // 4
ORDERS = ("mad", "trit5", "dense")  # that a row can be taken out of


@kernel
def embed_dense(
    codes: Pointer[u8],
    scales: Pointer[u8],
    tokens: Pointer[i64],
    x: Pointer[f32],
    padded_k: i64,
    k: i64,
    x_stride: i64,
    task: i64,
    *,
    dtype,
    format,
):
    """A row of a dense table: numbers 32 apart."""
    token = load(tokens, task)
    first = (token // PAIR) * padded_k * PAIR + token % PAIR
    beside = Beside(scales, *[scales] * 4, padded_k // CHUNK, format)
    for column in loop(0, k):
        stored = load_as(codes, first + column * PAIR, dtype)
        if format is None:
            value = convert(stored, f32)
        else:
            group = column // format.group_size if format.group_size else 0
            scale = beside.scale(Row(token // PAIR, token % PAIR, 1), group) * float_unit(format.levels)
            value = small_float(stored, format.levels) * scale
        store(x, task * x_stride + column, value)


@kernel
def embed_codes(
    codes: Pointer[u8],
    scales: Pointer[u8],
    zeros: Pointer[u8],
    mins: Pointer[u8],
    super_scales: Pointer[u8],
    super_mins: Pointer[u8],
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
    beside = Beside(scales, zeros, mins, super_scales, super_mins, chunks, format)
    row = TableRow(codes, token, chunks, format, beside, levels_of(format, False), QUAD_CODES[order])
    start = task * x_stride
    for chunk in loop(0, whole_chunks):
        for quad, four in enumerate(row.values(chunk)):
            store(x, start + (chunk * CHUNK + 4 * quad), four)
    last = row.values(whole_chunks) if tail else []
    for k in range(tail):
        store(x, start + (whole_chunks * CHUNK + k), extract(last[k // 4], k % 4))


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
class TableRow:
    """One row of a quantised table: its codes, what they mean, what stands beside them, and how to find a quad."""

    codes: Value
    token: Value
    chunks: Value
    format: Format
    beside: Beside
    levels: Levels
    quad_codes: Callable[..., Value]

    def values(self, chunk: Value) -> list[Value]:
        """f32x4 for each quad of a chunk: the sum over the terms, then the min."""
        values = self.term(chunk, 0)
        for term in range(1, self.format.terms):
            values = [value + more for value, more in zip(values, self.term(chunk, term), strict=True)]
        if self.format.offset != "mins":
            return values
        return [value + splat(self.beside.low(self.row, self.group(chunk, q)), 4) for q, value in enumerate(values)]

    def term(self, chunk: Value, term: int) -> list[Value]:
        """f32x4 for each quad: (level - zero) * scale of one term."""
        products = []
        for quad, biased in enumerate(self.bytes(chunk, term)):
            group = self.group(chunk, quad)
            level = convert(biased, i32) - self.levels.bias
            if self.format.offset == "zeros":
                level = level - splat(self.beside.zero(self.row, group), 4)
            products.append(convert(level, f32) * splat(self.beside.scale(self.row, group, term), 4))
        return products

    def bytes(self, chunk: Value, term: int) -> list[Value]:
        """u8x4 for each quad: levels plus their bias.  A whole chunk is looked up at once."""
        stored = stored_chunk(self.format, self.chunks, chunk, self.group(chunk, 0), term)
        chunks, bits = self.chunks * self.format.terms, self.format.bits
        quads = [self.quad_codes(self.codes, self.token, chunks, stored, quad, bits) for quad in range(QUADS)]
        if self.levels.table is None:
            return quads
        found = lookup(self.levels.table, join(quads))
        return [shuffle(found, found, range(4 * quad, 4 * quad + 4)) for quad in range(QUADS)]

    @property
    def row(self) -> Row:
        return Row(self.token // PAIR, self.token % PAIR, 1)

    def group(self, chunk: Value, quad: int) -> Operand:
        size = self.format.group_size
        return (chunk * CHUNK + 4 * quad) // size if size else 0


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
    if table.order == "dense":
        args = dict(common, scales=table.scales, padded_k=table.padded_k, k=table.k)
        return Step(embed_dense.bind(args, isa, dtype=table.dtype or "u8", format=table.format), 1, 1)
    if table.order == "trit5":
        return embed_trit.bind(table, tokens, x, isa=isa)
    if table.order not in QUAD_CODES:
        raise KernelError(f"expected a table in mad, lut, trit5 or dense order, got {table.order}; use tile_mad")
    sidecars = {name: getattr(table, name) for name in BESIDE}
    sizes = dict(chunks=table.padded_k // CHUNK, whole_chunks=table.k // CHUNK)
    launch = embed_codes.bind(
        {**common, **sidecars, **sizes}, isa, format=table.format, order=table.order, tail=table.k % CHUNK
    )
    return Step(launch, 1, 1)
