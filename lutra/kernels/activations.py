"""Int8 activations as the low-bit matmuls read them: codes, scales, sums, and tables for lookup kernels.

First the buffers, then the traced words with which norm.py fills them, 16 columns in a vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutra.compiler.language import (
    Value,
    absolute,
    bitcast,
    concat,
    const,
    convert,
    dot4,
    i8,
    i32,
    load,
    loop,
    maximum,
    reduce_add,
    reduce_max,
    shuffle,
    splat,
    store,
    u8,
)
from lutra.errors import KernelError
from lutra.formats.format import Format
from lutra.formats.integer import LUT_WIDTH
from lutra.formats.packing import padded_k
from lutra.formats.reduce import NUM_LANES
from lutra.formats.trits import num_steps
from lutra.kernels.buffers import aligned
from lutra.kernels.tiles import TiledWeight
from lutra.kernels.tiles_lut import HALF_BITS, TABLE_BIAS
from lutra.kernels.tiles_trit import PARTS, table_columns

_MAGIC = 12582912.0  # 1.5 * 2**23: after adding it the low bits of the float are the nearest integer, halves to even
_SMALLEST = 1e-5  # least largest magnitude of a row or group, as in formats/integer.quantize_activations
# Entry p of a table adds x[i] where bit i of p is 1 and subtracts it where it is 0.
_PLUS = [p >> i & 1 for p in range(16) for i in range(4)]
_LOW_THEN_HIGH = [4 * entry + byte for byte in (0, 1) for entry in range(16)]
# order of a weight → the arrays its kernel reads; one that looks sums of five up reads "trits" and "xs"
READ_BY = {"mad": ("xq", "xs", "sums"), "lut": ("tables", "xs", "sums"), "trit5": ("places", "xs", "sums"),
           "vector": ("xq", "xs")}  # fmt: skip


@dataclass(frozen=True)
class Activations:
    """Buffers for up to `rows` rows of K quantised activations; Kp is K padded for the weight's format.

    xq       i8  [rows, Kp]            codes -127 .. 127; columns beyond K are 0
    xs       f32 [rows, 1 or G]        scale per row, or per group: x = xq * xs
    sums     i32 [rows, G]             sum of xq over each group of the *weight*
    tables   u8  [rows, Kp/4, 2, 16]   5-bit halves of the tables of formats/integer.build_tables, see tiles_lut.py
    trits    i8  [rows, K/5, 64]       parts of the tables of formats/trits.build_trit_tables, see trit_tables.py
    places   i8  [rows, Kp]            xq of four steps of five, sorted, see trit_places.py
    """

    xq: np.ndarray
    xs: np.ndarray
    sums: np.ndarray
    tables: np.ndarray | None = None
    trits: np.ndarray | None = None
    places: np.ndarray | None = None


def allocate(rows: int, k: int, format: Format, with_tables: bool = False, with_trits: bool = False) -> Activations:
    """Zeroed, aligned buffers for `rows` rows of activations that meet weights of `format` with K = k.

    with_tables, with_trits   for weights in lut order, in trit5 order
    """
    if rows < 1 or k < 1:
        raise KernelError(f"expected at least one row and one column, got {rows} x {k}; check the model's sizes")
    kp = table_columns(k) if with_trits else padded_k(k, format.group_size)
    num_groups = kp // format.group_size if format.group_size else 1
    return Activations(
        xq=aligned((rows, kp), np.int8),
        xs=aligned((rows, num_groups if format.activation_group else 1), np.float32),
        sums=aligned((rows, num_groups), np.int32),
        tables=aligned((rows, kp // LUT_WIDTH, 2, 16), np.uint8) if with_tables else None,
        trits=aligned((rows, num_steps(k), PARTS), np.int8) if with_trits else None,
        places=aligned((rows, kp), np.int8) if with_trits else None,
    )


def check(x: Activations, weight: TiledWeight, tile_m: int, wanted: str, read: tuple[str, ...] = ()) -> None:
    """Raise KernelError unless a matmul kernel of `weight` may read x, `tile_m` rows at a time.

    wanted   what to allocate x with besides rows, k and format, for the error
    read     the arrays that are read, where they are not those of READ_BY
    """
    format, rows = weight.format, len(x.xq)
    assert format is not None
    num_groups = format.num_groups(weight.k)
    every = {
        "xq": (rows, weight.padded_k),
        "tables": (rows, weight.padded_k // LUT_WIDTH, 2, 16),
        "trits": (rows, num_steps(weight.k), PARTS),
        "places": (rows, weight.padded_k),
        "xs": (rows, num_groups if format.activation_group else 1),
        "sums": (rows, num_groups),
    }
    shapes = {name: every[name] for name in read or READ_BY[weight.order]}
    got = {name: getattr(x, name).shape for name in shapes if getattr(x, name) is not None}
    if got != shapes or rows % tile_m:
        raise KernelError(
            f"expected activations of a multiple of {tile_m} rows with {_shapes(shapes)}, got {_shapes(got)}; "
            f"allocate them with activations.allocate(rows, {weight.k}, format{wanted})"
        )


def _shapes(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())


def largest(parts: list[Value]) -> Value:
    """Largest magnitude of f32 vectors, lane by lane."""
    parts = [absolute(part) for part in parts]
    while len(parts) > 1:  # pairs, so that no chain of dependent maxima forms; their number is a power of two
        parts = [maximum(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def store_scale(magnitudes: Value, xs: Value, at: Value) -> Value:
    """Store the scale of values whose largest magnitude is in some lane; return 127 / it in every lane."""
    top = maximum(reduce_max(magnitudes), _SMALLEST)
    store(xs, at, top / 127.0)
    return splat(127.0 / top, NUM_LANES)


def store_codes(parts: list[Value], inverses: list[Value], xq: Value, at: Value) -> list[Value]:
    """Round f32 vectors to int8, store them side by side; return i32 sums of 4 neighbours, 64 codes a vector."""
    pieces = [_round(part * inverse) for part, inverse in zip(parts, inverses, strict=True)]
    while len(pieces) > 1 and pieces[0].type.lanes < 64:
        pieces = [concat(a, b) for a, b in zip(pieces[::2], pieces[1::2], strict=True)]
    lanes = pieces[0].type.lanes
    for i, piece in enumerate(pieces):
        store(xq, at + i * lanes, piece)
    ones, zero = const(1, u8, lanes), const(0, i32, lanes // 4)
    return [dot4(zero, ones, piece, bound=1) for piece in pieces]


def _round(v: Value) -> Value:
    """Nearest int8, halves to even; |v| <= 127 up to rounding."""
    return convert(bitcast(v + _MAGIC, i32), i8)


def store_sums(quads: list[Value], group: int, sums: Value, at: Value) -> None:
    """Add the sums of `store_codes` up to one for each `group` codes, and store them side by side."""
    lanes, wanted = quads[0].type.lanes, group // 4
    while lanes < wanted:  # a group spans several vectors
        quads = [a + b for a, b in zip(quads[::2], quads[1::2], strict=True)]
        wanted //= 2
    for i, quad in enumerate(quads):
        width = wanted
        while width > 1 and quad.type.lanes > 1:
            quad = _add_neighbours(quad)
            width //= 2
        store(sums, at + i * (lanes // wanted), quad)


def _add_neighbours(v: Value) -> Value:
    """v[0] + v[1], v[2] + v[3], ...: half the lanes."""
    lanes = v.type.lanes
    if lanes == 2:
        return reduce_add(v)
    return shuffle(v, v, range(0, lanes, 2)) + shuffle(v, v, range(1, lanes, 2))


def store_tables(xq: Value, tables: Value, start: Value, columns: Value) -> None:
    """Store the tables (tiles_lut.split_tables) of `columns` codes from xq[start] on."""
    zero = const(0, u8, 64)
    plus = shuffle(zero, zero + 1, [64 * bit + lane for lane, bit in enumerate(_PLUS)])
    minus = plus ^ 1
    for k in loop(0, columns, LUT_WIDTH):
        four = bitcast(splat(bitcast(load(xq, start + k, LUT_WIDTH), i32), 16), i8)  # the same 4 codes 16 times
        added = dot4(const(TABLE_BIAS, i32, 16), plus, four, bound=1)
        entry = added - dot4(const(0, i32, 16), minus, four, bound=1)  # 4 .. 1020
        halves = bitcast((entry & (1 << HALF_BITS) - 1) | (entry >> HALF_BITS << 8), u8)
        store(tables, (start + k) * (32 // LUT_WIDTH), shuffle(halves, halves, _LOW_THEN_HIGH))
