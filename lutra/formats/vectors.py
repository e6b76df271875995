"""A vector codebook: one byte names 2, 4 or 8 neighbouring weights at once, so that a weight may have one bit.

    W[n, k] = scales[n] * sum over t of books[t, indices[n, t, k // length], k % length]

The levels in the books are int8, so a multiplication is exact integers, on two roads that meet:

    look up and add      build_tables -> lookup_dot -> matmul       kernels/matmul_vector.py
    re-code              as_int8 -> integer.matmul                  codes of 8 bits for any kernel that reads them

An index is a byte and a book has 256 entries, so no file can name an entry that is not there.

Bounds    a centroid's magnitudes add up to 258 at most, so a table's entries are int16: 258 * 127 = 32766.  Two books
          add up to int8 in every place, so as_int8 is exact
Sources   VPTQ, arXiv 2409.17066, section 3 (indices, residual book), which lays vectors along outputs; along inputs, as
          here and in GPTVQ, arXiv 2402.15319, section 3, all rows share the products of activations and centroids
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from lutra import fused
from lutra.errors import FormatError
from lutra.formats import catalog, packing
from lutra.formats.catalog import int8
from lutra.formats.format import Format
from lutra.formats.qtensor import MAX_GROUP_WIDTH, QTensor

LENGTHS = (2, 4, 8)
MAX_TERMS = 2
CENTROIDS = 256
MAX_MAGNITUDE = 258  # of a centroid: the sum of its levels' magnitudes
LENGTH = "vector_length"  # the axis that no other format has
ARRAYS = ("indices", "books", "scales")
NAMES = ("vectors8", "vectors8x2", "vectors4", "vectors2")  # those there is a reason to use
SOURCE = "VPTQ, arXiv 2409.17066, vectors along inputs as in GPTVQ, arXiv 2402.15319; levels rounded to int8"
_NAME = re.compile(r"vectors([248])(?:x(2))?")


@dataclass(frozen=True)
class VectorFormat:
    """What the bytes of a VectorWeight mean; it answers what any format is asked about rows and activations.

    length   weights that an index names, neighbours along K
    terms    1, or 2: the vectors of a second book are added

    raises   FormatError   a length or number of books there is not
    """

    length: int
    terms: int = 1

    group_size: ClassVar[int] = 0  # one scale per row
    activation_group: ClassVar[int] = 0
    scale_dtype: ClassVar[str] = "f32"
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.float32)  # of scales
    is_float: ClassVar[bool] = False  # levels are whole numbers

    def __post_init__(self) -> None:
        if self.length not in LENGTHS or not 1 <= self.terms <= MAX_TERMS:
            raise FormatError(f"expected vectors of 2, 4 or 8 weights and one or two books, got {self.length} and "
                              f"{self.terms}; choose vectors4, vectors8 or vectors8x2")  # fmt: skip

    @property
    def name(self) -> str:
        return f"vectors{self.length}" + (f"x{self.terms}" if self.terms > 1 else "")

    def padded_k(self, k: int) -> int:
        """Columns a row of k weights is stored with: whole blocks of 32."""
        return packing.padded_k(k, 0)

    def num_groups(self, k: int) -> int:
        return 1

    def num_vectors(self, k: int) -> int:
        """V: indices of a row and term."""
        return self.padded_k(k) // self.length

    def row_bytes(self, k: int) -> int:
        """Bytes of the indices of a row."""
        return self.num_vectors(k) * self.terms

    def beside(self, k: int) -> dict[str, tuple[str, int]]:
        """What a row has beside its indices, as Format.beside."""
        return {"scales": (self.scale_dtype, 1)}


@dataclass(frozen=True, eq=False)
class VectorWeight:
    """The weight of y = x @ W.T, rows as indices.

    format    VectorFormat
    shape     (N, K)                      true sizes
    indices   uint8 [N, T, V]             those of padding mean nothing: activations are 0 there
    books     int8 [T, 256, length]       entries nobody names are 0
    scales    f32 [N, 1]

    raises    FormatError   another shape or type; a scale that is not finite; levels beyond the bounds above

    >>> books = np.zeros((1, 256, 2), np.int8)
    >>> books[0, :2] = [[1, 2], [3, -1]]
    >>> indices = np.zeros((1, 1, 16), np.uint8)
    >>> indices[0, 0, :2] = [1, 0]
    >>> VectorWeight(VectorFormat(2), (1, 4), indices, books, np.array([[0.5]], np.float32)).dequantize().tolist()
    [[1.5, -0.5, 0.5, 1.0]]
    """

    format: VectorFormat
    shape: tuple[int, int]
    indices: np.ndarray
    books: np.ndarray
    scales: np.ndarray

    def __post_init__(self) -> None:
        form, (n, k) = self.format, self.shape
        if n < 1 or not 1 <= k <= MAX_GROUP_WIDTH:
            raise FormatError(f"{form.name}: expected at least one row and 1 to {MAX_GROUP_WIDTH} columns, got shape "
                              f"({n}, {k}); use a format with groups")  # fmt: skip
        _check(form, "indices", self.indices, np.uint8, (n, form.terms, form.num_vectors(k)))
        _check(form, "books", self.books, np.int8, (form.terms, CENTROIDS, form.length))
        _check(form, "scales", self.scales, np.float32, (n, 1))
        if not np.isfinite(self.scales).all():
            raise FormatError(f"{form.name}: scales: expected finite values, got inf or nan; the weight is damaged")
        check_levels(self.books)

    @property
    def nbytes(self) -> int:
        """Bytes of indices, books and scales."""
        return self.indices.nbytes + self.books.nbytes + self.scales.nbytes

    def levels(self) -> np.ndarray:
        """Return the sums of the books' levels, int8 [N, padded K]."""
        total = self.books[0][self.indices[:, 0]]  # [N, V, length]
        for term in range(1, self.format.terms):
            total = total + self.books[term][self.indices[:, term]]
        levels: np.ndarray = total.reshape(len(self.indices), -1)
        return levels

    def dequantize(self) -> np.ndarray:
        """Return the values, f32 [N, K], each product rounded once."""
        values: np.ndarray = self.levels()[:, : self.shape[1]].astype(np.float32)
        values *= self.scales
        return values

    def as_int8(self) -> QTensor:
        """The same weight as codes of 8 bits with a scale per row: matmuls by either are the same bits."""
        codes = self.levels()[:, : self.shape[1]].view(np.uint8) ^ np.uint8(128)
        return QTensor.from_codes(int8(0), codes, self.scales)

    def rows(self, index: Any) -> VectorWeight:
        """Select or permute rows: a slice, a list or array of row numbers, or a mask [N]."""
        picked = self.indices[index]
        return replace(self, shape=(len(picked), self.shape[1]), indices=picked, scales=self.scales[index])

    @staticmethod
    def concat(weights: Sequence[VectorWeight]) -> VectorWeight:
        """Stack weights of one format, one K and the same books along N; FormatError for others."""
        kinds = {(w.format, w.shape[1], w.books.tobytes()) for w in weights}
        if len(kinds) > 1:
            raise FormatError(f"expected weights of one format, K and books, got {len(kinds)}; keep them apart")
        indices, scales = (np.concatenate([getattr(w, name) for w in weights]) for name in ("indices", "scales"))
        return replace(weights[0], shape=(len(indices), weights[0].shape[1]), indices=indices, scales=scales)


def check_levels(books: np.ndarray) -> None:
    """Refuse books int8 [T, 256, length] beyond the bounds above: FormatError."""
    wide = books.astype(np.int32)
    if np.abs(wide).sum(-1).max() > MAX_MAGNITUDE:
        raise FormatError(f"books: expected centroids whose magnitudes add up to {MAX_MAGNITUDE} at most, got "
                          f"{np.abs(wide).sum(-1).max()}; make the scales larger")  # fmt: skip
    if wide.max(1).sum(0).max() > 127 or wide.min(1).sum(0).min() < -128:
        raise FormatError("books: expected levels that add up to -128 .. 127, got more; make the scales larger")


def build_tables(xq: np.ndarray, books: np.ndarray) -> np.ndarray:
    """Multiply every vector of activations with every centroid.

    xq       int8  [M, V * length]
    books    int8  [T, 256, length]
    returns  int16 [M, V, T, 256]

    >>> build_tables(np.array([[1, 2]], np.int8), np.array([[[3, -1], [1, 2]]], np.int8)).tolist()
    [[[[1, 5]]]]
    """
    vectors = xq.reshape(len(xq), -1, books.shape[-1]).astype(np.int32)
    products: np.ndarray = np.einsum("mvl,tcl->mvtc", vectors, books.astype(np.int32))
    return products.astype(np.int16)


def lookup_dot(tables: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Add what the indices of a row name in the tables.

    tables   int16 [M, V, T, 256]
    indices  uint8 [N, T, V]
    returns  int32 [M, N]
    """
    acc = np.zeros((len(tables), len(indices)), np.int32)
    for vector in range(tables.shape[1]):
        for term in range(tables.shape[2]):
            acc += tables[:, vector, term][:, indices[:, term, vector]]
    return acc


def matmul(xq: np.ndarray, xs: np.ndarray, w: VectorWeight) -> np.ndarray:
    """Return y = x @ W.T, bit for bit what integer.matmul returns for w.as_int8().

    xq       int8 [M, padded K]
    xs       f32  [M, 1]
    returns  f32  [M, N]   scale * xs, then the sum times that, as integer.scale_groups rounds it

    >>> books = np.zeros((1, 256, 2), np.int8)
    >>> books[0, :2] = [[1, 2], [3, -1]]
    >>> indices = np.zeros((1, 1, 16), np.uint8)
    >>> indices[0, 0, :2] = [1, 0]
    >>> w = VectorWeight(VectorFormat(2), (1, 4), indices, books, np.array([[0.5]], np.float32))
    >>> x = np.pad(np.array([[1, 2, 3, 4]], np.int8), ((0, 0), (0, 28)))           # 3 - 2 + 3 + 8 = 12
    >>> matmul(x, np.array([[2]], np.float32), w).tolist()
    [[12.0]]
    """
    acc = lookup_dot(build_tables(xq, w.books), w.indices)
    result: np.ndarray = fused.fma(acc.astype(np.float32), w.scales.T * xs, np.float32(0))
    return result


def find(name: str) -> VectorFormat | None:
    """The format that a name spells, None for names of other formats."""
    found = _NAME.fullmatch(name)
    return None if found is None else VectorFormat(int(found[1]), int(found[2] or 1))


def find_other(name: str, place: str) -> Format:
    """The format that a name spells, where vectors will not do.

    place    what it is for: "for the head"
    raises   FormatError   vectors, and names of no format
    """
    if find(name) is not None:
        raise FormatError(f"expected a format with levels {place}, got {name}, one of vectors; try int8-g32")
    return catalog.find(name)


def draw(format: VectorFormat) -> str:
    """Return what a format is, as lines of text: what catalog.describe is for others."""
    books = f"{format.terms} books of {CENTROIDS} centroids" if format.terms > 1 else f"{CENTROIDS} centroids"
    total, term = (f"sum over t = 0 .. {format.terms - 1} of ", "t, ") if format.terms > 1 else ("", "")
    level = f"{total}book[{term}indices[n, {term}k // {format.length}], k % {format.length}]"
    return "\n".join([
        f"{format.name}   one byte for {format.length} weights, {books} of int8 levels, one scale per row",
        "",
        f"value        W[n, k] = scale[n] * {level}",
        f"size         {8 * format.terms / format.length:g} bits per weight, 4 bytes per row, "
        f"{format.terms * CENTROIDS * format.length} bytes per matrix",
        "activations  int8, one scale per token",
        f"beside       scales f32 [N, 1], books int8 [{format.terms}, {CENTROIDS}, {format.length}]",
        f"source       {SOURCE}",
    ])  # fmt: skip


def axes_of(format: VectorFormat) -> dict[str, object]:
    """Say a format as a file may hold it: `from_axes` makes it again."""
    return {LENGTH: format.length, "terms": format.terms}


def from_axes(stated: Mapping[str, object]) -> VectorFormat:
    """Make the format that somebody states; nothing in it is believed.

    raises   FormatError   other axes, or values they have not
    """
    length, terms = stated.get(LENGTH), stated.get("terms")
    if set(stated) != {LENGTH, "terms"} or type(length) is not int or type(terms) is not int:
        raise FormatError(f"expected numbers for {LENGTH} and terms of a format, got others; write the file again")
    return VectorFormat(length, terms)


def _check(form: VectorFormat, name: str, array: np.ndarray, dtype: type, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise FormatError(f"{form.name}: {name}: expected {np.dtype(dtype)} {list(shape)}, got {array.dtype} "
                          f"{list(array.shape)}; it belongs to another weight")  # fmt: skip
