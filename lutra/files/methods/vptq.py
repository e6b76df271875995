"""VPTQ checkpoints: indices of vectors that run along outputs, read as int8.

indices                  int32 [books, N / length, words]    a stream of bits for each row of vectors, main index low
centroids.weight         float [books, centroids * length]   each serves a run of the stored columns
res_centroids.weight     the same, added
perm                     int16 [K], the bits of uint16       stored column j belongs to input perm[j]
weight_scale, _bias      float [K]                           columns are multiplied with one, then the other is added

Tables of books of up to 65,536 vectors fit no cache, so values are multiplied out and rounded to int8 in groups of 128,
which costs less than a hundredth of a dB at 2 bits.  Columns with codebooks of their own (outliers) are refused.
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

GROUP = 128
LENGTHS = range(2, 33)
FLOATS = (np.dtype(np.float16), np.dtype(np.float32))
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
    if not is_one or length not in LENGTHS:
        raise refuse("vector_lens", f"one length from {LENGTHS[0]} to {LENGTHS[-1]} for all", stated[0], GIVE)
    beside = ("res_centroids.weight", "perm", "weight_scale", "weight_bias", "bias")
    return (Layout("vptq", ("indices", "centroids.weight"), beside, partial(_shape, length), partial(_read, length),
                   f"multiplied out, rounded to {int8(GROUP).name}"),)  # fmt: skip


def _shape(length: int, parts: Parts) -> tuple[int, int]:
    indices, bits = parts["indices"], sum(_index_bits(length, parts))
    if indices.ndim != 3 or not indices.size or indices.dtype != np.int32:
        raise FormatError(f"indices: expected int32 [books, rows, words], got {indices.dtype} {indices.shape}; "
                          f"{DAMAGED}")  # fmt: skip
    count, rows, words = indices.shape
    beside = [parts[name].size for name in ("perm", "weight_scale", "weight_bias") if name in parts]
    k = beside[0] if beside else count * (words * bitstream.WORD // bits)
    has_other_words = -(-_run(k, count) * bits // bitstream.WORD) != words
    if set(beside) - {k} or has_other_words or len(parts["centroids.weight"]) != count:
        raise FormatError(f"expected {words} words for {bits} bits of K={k} in {count} books, got others; {DAMAGED}")
    return rows * length, k


def _run(k: int, count: int) -> int:
    """Columns that a book serves."""
    return -(-k // count)


def _index_bits(length: int, parts: Parts) -> list[int]:
    """Bits of an index of each book there is, the main one first."""
    found = []
    for name in ("centroids.weight", "res_centroids.weight"):
        if name in parts:
            book = parts[name]
            if book.ndim != 2 or not book.size or book.dtype not in FLOATS or book.shape[1] % length:
                raise FormatError(f"{name}: expected a matrix of f16 or f32 vectors of {length}, got {book.dtype} "
                                  f"{book.shape}; {DAMAGED}")  # fmt: skip
            found.append(max((book.shape[1] // length - 1).bit_length(), 1))
    if sum(found) > bitstream.WORD or found[-1] > found[0]:
        raise FormatError("expected indices of at most 32 bits together, the residual one not the longer, got "
                          f"{found}; {DAMAGED}")  # fmt: skip
    return found


def _read(length: int, parts: Parts) -> QTensor:
    n, k = _shape(length, parts)
    bits, indices = _index_bits(length, parts), parts["indices"]
    names = ("centroids.weight", "res_centroids.weight")[: len(bits)]
    if any(parts[name].shape[0] != len(indices) for name in names):
        raise FormatError(f"expected {len(indices)} books of each kind, got others; {DAMAGED}")
    columns = [
        _values(words, [parts[name][book].reshape(-1, length) for name in names], bits, _run(k, len(indices)))
        for book, words in enumerate(indices)
    ]
    return _as_int8(_in_order(np.concatenate(columns, 1)[:, :k], parts))


def _values(words: np.ndarray, books: list[np.ndarray], bits: list[int], count: int) -> np.ndarray:
    """f32 [N, count] of int32 [N / length, words]: every index is checked before it is used."""
    codes, total, low = bitstream.unpack(words, sum(bits), count, np.uint32), np.float32(0), 0
    for book, width in zip(books, bits, strict=True):
        index = codes >> np.uint32(low) & np.uint32(2**width - 1)
        if int(index.max()) >= len(book):
            raise FormatError(f"indices: expected less than {len(book)}, got {int(index.max())}; {DAMAGED}")
        total = total + book.astype(np.float32)[index]  # [N / length, count, length]
        low += width
    values: np.ndarray = np.asarray(total).swapaxes(1, 2).reshape(-1, count)
    return values


def _in_order(values: np.ndarray, parts: Parts) -> np.ndarray:
    """Columns in the order of the inputs, scaled and moved."""
    k = values.shape[1]
    if "perm" in parts:
        perm = parts["perm"]
        perm = perm.view(np.uint16) if perm.dtype == np.int16 else perm
        if perm.shape != (k,) or perm.dtype.kind not in "iu" or not np.array_equal(np.sort(perm), np.arange(k)):
            raise FormatError(f"perm: expected each of 0 to {k - 1} once, got others; {DAMAGED}")
        ordered = np.empty_like(values)
        ordered[:, perm] = values
        values = ordered
    for name, combine in (("weight_scale", np.multiply), ("weight_bias", np.add)):
        if name in parts:
            values = combine(values, parts[name].astype(np.float32))
    return values


def _as_int8(values: np.ndarray) -> QTensor:
    """Round to the nearest level, the largest of each group at 127."""
    if not np.isfinite(values).all():
        raise FormatError(f"expected finite values, got inf or nan; {DAMAGED}")
    n, k = values.shape
    groups = np.pad(values, ((0, 0), (0, -k % GROUP))).reshape(n, -1, GROUP)
    scales = np.abs(groups).max(-1, keepdims=True) / np.float32(127)
    levels = np.rint(np.divide(groups, scales, out=np.zeros_like(groups), where=scales > 0))
    codes = (levels.reshape(n, -1)[:, :k] + 128).astype(np.uint8)
    return QTensor.from_codes(int8(GROUP, scale_dtype="f32"), codes, scales[..., 0])
