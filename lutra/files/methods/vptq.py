"""VPTQ checkpoints: indices of vectors that run along outputs, read as int8.

indices                  int32 [books, N / length, words]    a stream of bits for each row of vectors, main index low
centroids.weight         float [books, centroids * length]   each serves a run of the stored columns
res_centroids.weight     the same, added
perm                     int16 [K], the bits of uint16       stored column j belongs to input perm[j]
weight_scale, _bias      float [K]                           columns are multiplied with one, then the other is added

Tables of books of up to 65,536 vectors fit no cache, so values are multiplied out and rounded to int8 in groups of 128,
which costs less than a hundredth of a dB at 2 bits.  Columns with codebooks of their own (outliers) are refused, and so
is less than 1/4 bit of index for a weight: a small file of that kind would come to a large model.
Without order and norms the words say how large K is: indices must fill them.
Source: microsoft/VPTQ, vptq/layers/vqlinear.py, and arXiv 2409.17066
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from lutra.errors import FormatError
from lutra.files.methods import bitstream
from lutra.files.methods.layout import DAMAGED, Layout, Parts, refuse
from lutra.formats.catalog import int8
from lutra.formats.qtensor import QTensor
from lutra.formats.scales import DTYPES
from lutra.formats.scales import FLOATS as FLOAT_SCALES

GROUP = 128
LENGTHS = range(2, 33)
FLOATS = tuple(DTYPES[name] for name in FLOAT_SCALES)
CENTROIDS = ("centroids.weight", "res_centroids.weight")
NORMS = {"weight_scale": np.multiply, "weight_bias": np.add}  # in this order
BLOCK = 1 << 20  # weights multiplied out at a time
GIVE = "convert the model before that quantisation"


def layouts(config: dict[str, Any]) -> tuple[Layout, ...]:
    """The layout of a quantization_config of quant_method vptq.  Raises FileError for lengths that differ, outliers."""
    layers = config.get("config_for_layers") or config.get("shared_layer_config")
    rows = list(layers.values()) if isinstance(layers, dict) else []
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise refuse("config_for_layers", "an object for each linear", layers, "download it again")
    if any(row.get("outlier_size") for row in rows):
        raise refuse("outlier_size", "0, no codebooks of outliers", "others", GIVE)
    stated = [row.get("vector_lens") for row in rows]
    length = stated[0][-1] if isinstance(stated[0], list) and stated[0] else None
    is_one = all(isinstance(lens, list) and lens and type(lens[-1]) is int and lens[-1] == length for lens in stated)
    if not is_one or not isinstance(length, int) or length not in LENGTHS:
        raise refuse("vector_lens", f"one length from {LENGTHS[0]} to {LENGTHS[-1]} for all", stated[0], GIVE)
    beside = ("res_centroids.weight", "perm", "weight_scale", "weight_bias", "bias")
    return (Layout("vptq", ("indices", "centroids.weight"), beside, partial(_shape, length), partial(_read, length),
                   f"multiplied out, rounded to {int8(GROUP).name}"),)  # fmt: skip


def _shape(length: int, parts: Parts) -> tuple[int, int]:
    indices, bits = parts["indices"], sum(_index_bits(length, parts))
    if indices.ndim != 3 or not indices.size or indices.dtype != np.int32:
        raise FormatError(f"indices: expected int32 [books, rows, words], got {indices.dtype} {indices.shape}; "
                          f"{DAMAGED}")  # fmt: skip
    if 4 * bits < length:
        raise FormatError(f"indices: expected at least 1/4 bit for a weight, got {bits} for {length} weights; {GIVE}")
    count, rows, words = indices.shape
    beside = [name for name in ("perm", *NORMS) if name in parts]
    k = parts[beside[0]].size if beside else count * (words * bitstream.WORD // bits)
    has_other_words = -(-_run(k, count) * bits // bitstream.WORD) != words
    if has_other_words or any(len(parts[name]) != count for name in CENTROIDS if name in parts):
        raise FormatError(f"expected {words} words for {bits} bits of K={k} in {count} books, got others; {DAMAGED}")
    for name in beside:
        _check_beside(name, parts[name], k)
    return rows * length, k


def _check_beside(name: str, values: np.ndarray, k: int) -> None:
    """Raise FormatError unless there is one value of the right kind for each column."""
    is_kind = values.dtype in FLOATS if name in NORMS else values.dtype.kind in "iu"
    if values.shape != (k,) or not is_kind:
        kind = "floats" if name in NORMS else "whole numbers"
        raise FormatError(f"{name}: expected {kind} {(k,)}, got {values.dtype} {values.shape}; {DAMAGED}")


def _run(k: int, count: int) -> int:
    """Columns that a book serves."""
    return -(-k // count)


def _index_bits(length: int, parts: Parts) -> list[int]:
    """Bits of an index of each book there is, the main one first."""
    found = []
    for name in CENTROIDS:
        if name in parts:
            book = parts[name]
            if book.ndim != 2 or not book.size or book.dtype not in FLOATS or book.shape[1] % length:
                raise FormatError(f"{name}: expected a matrix of f16, f32 or bf16 vectors of {length}, got "
                                  f"{book.dtype} {book.shape}; {DAMAGED}")  # fmt: skip
            found.append(max((book.shape[1] // length - 1).bit_length(), 1))
    if sum(found) > bitstream.WORD or found[-1] > found[0]:
        raise FormatError("expected indices of at most 32 bits together, the residual one not the longer, got "
                          f"{found}; {DAMAGED}")  # fmt: skip
    return found


def _read(length: int, parts: Parts) -> QTensor:
    """Round some rows at a time: all of them as f32, with what it takes to gather them, are many times the result."""
    n, k = _shape(length, parts)
    order, bits = _order(parts, k), _index_bits(length, parts)
    books = [parts[name].reshape(len(parts[name]), -1, length) for name in CENTROIDS if name in parts]
    codes, scales = np.empty((n, k), np.uint8), np.empty((n, -(-k // GROUP)), np.float32)
    step = max(BLOCK // (length * k), 1)
    for row in range(0, n // length, step):
        values = _values(parts["indices"][:, row : row + step], books, bits, _run(k, len(books[0])))[:, :k]
        values = values if order is None else values[:, order]
        for name, combine in NORMS.items():
            if name in parts:
                values = combine(values, parts[name].astype(np.float32))
        rows = slice(row * length, row * length + len(values))
        codes[rows], scales[rows] = _as_int8(values)
    return QTensor.from_codes(int8(GROUP, scale_dtype="f32"), codes, scales)


def _values(words: np.ndarray, books: list[np.ndarray], bits: list[int], count: int) -> np.ndarray:
    """The columns as stored, of some rows; every index is checked before it is used.

    words    int32 [books, R, W]
    books    of each kind float [books, centroids, length]
    returns  f32 [R * length, books * count]
    """
    many, rows, _ = words.shape
    codes = bitstream.unpack(words.reshape(many * rows, -1), sum(bits), count, np.uint32).reshape(many, rows, count)
    total, low = np.float32(0), 0
    for book, width in zip(books, bits, strict=True):
        index, size = codes >> np.uint32(low) & np.uint32(2**width - 1), book.shape[1]
        if int(index.max()) >= size:
            raise FormatError(f"indices: expected less than {size}, got {int(index.max())}; {DAMAGED}")
        total = total + book[np.arange(many)[:, None, None], index].astype(np.float32)  # [books, R, count, length]
        low += width
    values: np.ndarray = np.asarray(total).transpose(1, 3, 0, 2).reshape(-1, many * count)
    return values


def _order(parts: Parts, k: int) -> np.ndarray | None:
    """Which stored column each input has, [K]; None where they lie in order."""
    if "perm" not in parts:
        return None
    perm = parts["perm"]
    perm = perm.view(np.uint16) if perm.dtype == np.int16 else perm
    if not np.array_equal(np.sort(perm), np.arange(k)):
        raise FormatError(f"perm: expected each of 0 to {k - 1} once, got others; {DAMAGED}")
    return np.argsort(perm)


def _as_int8(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round to the nearest level, the largest of each group at 127: codes uint8 [R, K], scales f32 [R, groups]."""
    if not np.isfinite(values).all():
        raise FormatError(f"expected finite values, got inf or nan; {DAMAGED}")
    n, k = values.shape
    groups = np.pad(values, ((0, 0), (0, -k % GROUP))).reshape(n, -1, GROUP)
    scales = np.abs(groups).max(-1, keepdims=True) / np.float32(127)
    levels = np.rint(np.divide(groups, scales, out=np.zeros_like(groups), where=scales > 0))
    return (levels.reshape(n, -1)[:, :k] + 128).astype(np.uint8), scales[..., 0]
