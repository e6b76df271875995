"""Vector quantisation: an index names several weights at once, so that fewer than 2 bits per weight still have a shape.

Neighbouring outputs of one input column form vectors of `length` weights; an index points into a codebook, a second one
into a codebook of what the first left over.

    codebook   k-means of the vectors; a vector counts by the mean square of its input, the diagonal of the hessian
    choice     column by column, largest inputs first; each column takes its nearest vectors, and the columns to come
               make up for the error, as in GPTQ
    residual   a codebook for the errors of that pass, and a second pass that uses both
    outliers   the columns with the largest inputs may have codebooks of their own
    normalise  every column is moved and scaled to 0 .. 1 first

Without a hessian all inputs count the same and nothing is made up for.  The tuning of centroids by gradients, from
which the paper has its best numbers, is left out.

Source   VPTQ, arXiv 2409.17066, sections 3 and 4 (algorithms 1 and 2), and its file layout: vectors along outputs
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lutra.errors import FormatError
from lutra.quantize.gptq import DAMP, Factor
from lutra.quantize.rounding import as_finite_f32

ROUNDS = 100
TOLERANCE = 1e-5  # of the error: k-means stops when a round gains less
MAX_CENTROIDS = 1 << 16  # an index is uint16
SCORES_AT_ONCE = 1 << 17  # distances held at a time: they stay in the cache


@dataclass(frozen=True)
class Part:
    """Columns that share codebooks; the codebooks are added.

    columns    int [C]                     inputs
    codebooks  f16 [centroids, length], one or two of them
    indices    uint16 [ceil(N / length), C], one array for each codebook
    """

    columns: np.ndarray
    codebooks: tuple[np.ndarray, ...]
    indices: tuple[np.ndarray, ...]

    def values(self) -> np.ndarray:
        """Return f32 [rows, C], rows rounded up to whole vectors."""
        total = sum(book.astype(np.float32)[index] for book, index in zip(self.codebooks, self.indices, strict=True))
        return _as_matrix(np.asarray(total))

    @property
    def bits(self) -> int:
        """Bits of indices and codebooks."""
        index_bits = sum((len(book) - 1).bit_length() for book in self.codebooks)
        return self.indices[0].size * index_bits + sum(8 * book.nbytes for book in self.codebooks)


@dataclass(frozen=True)
class VectorWeight:
    """A weight [N, K] of vectors.

    parts        every column belongs to one
    input_scale  f32 [K] or None: columns are multiplied with it, then `input_bias` f32 [K] is added
    """

    shape: tuple[int, int]
    parts: tuple[Part, ...]
    input_scale: np.ndarray | None = None
    input_bias: np.ndarray | None = None

    def dequantize(self) -> np.ndarray:
        """Return f32 [N, K]; each sum and product rounds once."""
        values = np.empty(self.shape, np.float32)
        for part in self.parts:
            values[:, part.columns] = part.values()[: self.shape[0]]
        if self.input_scale is not None and self.input_bias is not None:
            values = values * self.input_scale + self.input_bias
        return values

    def bits_per_weight(self) -> float:
        """Return bits per weight, codebooks, scales and which columns are outliers included."""
        sides = 0 if self.input_scale is None else 64 * self.shape[1]
        lists = 16 * self.shape[1] if len(self.parts) > 1 else 0
        return (sum(part.bits for part in self.parts) + sides + lists) / (self.shape[0] * self.shape[1])


def vptq(w: np.ndarray, hessian: np.ndarray | None = None, *, length: int = 8, centroids: int = 256, residual: int = 0,
         outliers: float = 0.0, normalise: bool = False, rounds: int = ROUNDS, damp: float = DAMP,
         seed: int = 0) -> VectorWeight:  # fmt: skip
    """Quantise to vectors.

    w          float [N, K]    finite
    hessian    float [K, K]    x.T x over calibration tokens, times any factor
    length     weights per vector, 2 to 16
    centroids  vectors in the codebook; residual: in the second one, 0 for none
    outliers   share of columns with codebooks of their own, 0 to 0.5
    seed       of the vectors that k-means starts from
    raises     FormatError     weights that are not finite, numbers out of range, fewer vectors than centroids

    >>> w = np.array([[1, 3], [1, -1], [3, 1], [-1, 1]], np.float32)             # down the columns: (1, 1) and (3, -1)
    >>> found = vptq(w, length=2, centroids=2)
    >>> sorted(found.parts[0].codebooks[0].tolist()), bool((found.dequantize() == w).all())
    ([[1.0, 1.0], [3.0, -1.0]], True)
    """
    w = as_finite_f32(w)
    books_fit = all(2 <= size <= MAX_CENTROIDS for size in (centroids, residual or 2))
    if not (2 <= length <= 16 and 0 <= outliers <= 0.5 and books_fit):
        raise FormatError(f"expected vectors of 2 to 16 weights, codebooks of 2 to {MAX_CENTROIDS} and at most half "
                          f"of the columns as outliers, got {length}, {centroids}, {residual} and {outliers}; choose "
                          "others")  # fmt: skip
    scale, bias = _normalisation(w) if normalise else (None, None)
    target = w if scale is None or bias is None else (w - bias) / scale
    if hessian is not None and scale is not None:
        hessian = hessian * np.outer(scale, scale)
    feedback = _Feedback.of(hessian, target.shape[1], damp)
    rng = np.random.Generator(np.random.PCG64(seed))
    count = int(round(outliers * w.shape[1]))
    sets = [columns for columns in (feedback.order[:count], feedback.order[count:]) if len(columns)]
    padded = np.pad(target, ((0, -len(w) % length), (0, 0)))
    books = [
        [_kmeans(_vectors(padded[:, columns], length), feedback.counts[columns], centroids, rounds, rng)]
        for columns in sets
    ]
    indices, errors = feedback.choose(padded, sets, books)
    if residual:
        for part, columns in enumerate(sets):
            books[part].append(
                _kmeans(_vectors(errors[:, columns], length), feedback.counts[columns], residual, rounds, rng)
            )
        indices, errors = feedback.choose(padded, sets, books)
    parts = [Part(np.sort(columns), tuple(book), tuple(index[:, np.sort(columns)] for index in indices))
             for columns, book in zip(sets, books, strict=True)]  # fmt: skip
    return VectorWeight((w.shape[0], w.shape[1]), tuple(parts), scale, bias)


@dataclass(frozen=True)
class _Feedback:
    """What inputs say: how much a column counts, f64 [K], the order of columns, and what makes up for errors."""

    counts: np.ndarray
    order: np.ndarray
    upper: np.ndarray | None

    @classmethod
    def of(cls, hessian: np.ndarray | None, k: int, damp: float) -> _Feedback:
        if hessian is None:
            return cls(np.ones(k), np.arange(k), None)
        if hessian.shape != (k, k):
            raise FormatError(f"expected a hessian [{k}, {k}], got {list(hessian.shape)}; collect inputs again")
        factor = Factor.of(hessian, damp, act_order=True)
        diagonal = np.diagonal(hessian).astype(np.float64)
        return cls(np.maximum(diagonal, 1e-6 * diagonal.mean() + 1e-30), factor.order, factor.upper)

    def choose(
        self, w: np.ndarray, sets: list[np.ndarray], books: list[list[np.ndarray]]
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Take the nearest vectors, column by column.

        w        f32 [rows, K]    rows a multiple of the length
        returns  indices uint16 [rows / length, K] for each codebook, and what was left of each column, f32 [rows, K]
        """
        length = books[0][0].shape[1]
        moved, left = w.T[self.order].copy(), np.empty_like(w)  # [K, rows], [rows, K]
        indices = [np.zeros((len(w) // length, w.shape[1]), np.uint16) for _ in books[0]]
        owner = np.repeat(np.arange(len(sets)), [len(columns) for columns in sets])
        for j, column in enumerate(self.order):
            rest = moved[j].reshape(-1, length)
            for index, book in zip(indices, books[owner[j]], strict=True):
                wide = book.astype(np.float32)
                index[:, column] = _nearest(rest, wide)
                rest = rest - wide[index[:, column]]
            left[:, column] = rest.reshape(-1)
            if self.upper is not None:
                moved[j + 1 :] -= self.upper[j, j + 1 :, None] * (left[:, column] / self.upper[j, j])
        return indices, left


def _normalisation(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the range and the least weight of every column, f32 [K]; a constant column has range 1."""
    least, most = w.min(0), w.max(0)
    return np.where(most > least, most - least, np.float32(1)), least


def _vectors(w: np.ndarray, length: int) -> np.ndarray:
    """View [rows, C] as vectors along rows, column after column within a run of rows: [rows / length * C, length]."""
    return np.ascontiguousarray(w.reshape(-1, length, w.shape[1]).swapaxes(1, 2)).reshape(-1, length)


def _as_matrix(vectors: np.ndarray) -> np.ndarray:
    """Turn [rows / length, C, length] into [rows, C]."""
    count, columns, length = vectors.shape
    return vectors.swapaxes(1, 2).reshape(count * length, columns)


def _kmeans(
    vectors: np.ndarray, column_counts: np.ndarray, centroids: int, rounds: int, rng: np.random.Generator
) -> np.ndarray:
    """Cluster vectors, each counted as its column is; returns f16 [centroids, length]."""
    if len(vectors) < centroids:
        raise FormatError(
            f"expected at least {centroids} vectors for a codebook, got {len(vectors)}; use fewer centroids"
        )
    counts = np.tile(column_counts, len(vectors) // len(column_counts))
    book = vectors[rng.choice(len(vectors), centroids, replace=False, p=counts / counts.sum())].astype(np.float32)
    before = np.inf
    for _ in range(rounds):
        index = _nearest(vectors, book)
        errors = counts * ((vectors - book[index]) ** 2).sum(1)
        if before - errors.sum() <= TOLERANCE * before < np.inf:
            break
        before = errors.sum()
        weight = np.bincount(index, counts, centroids)
        sums = np.stack([np.bincount(index, counts * axis, centroids) for axis in vectors.T], 1)
        used = weight > 0
        book[used] = sums[used] / weight[used, None]
        empty = np.flatnonzero(~used)
        book[empty] = vectors[
            np.argsort(-errors, kind="stable")[: len(empty)]
        ]  # a new start where the error is largest
    return book.astype(np.float16)


def _nearest(vectors: np.ndarray, book: np.ndarray) -> np.ndarray:
    """Return the nearest centroid of each vector, uint16."""
    half = (book**2).sum(1) / 2
    return np.concatenate([(half - some @ book.T).argmin(1).astype(np.uint16) for some in _runs(vectors, len(book))])


def _runs(vectors: np.ndarray, centroids: int) -> Iterator[np.ndarray]:
    step = max(1, SCORES_AT_ONCE // centroids)
    for start in range(0, len(vectors), step):
        yield vectors[start : start + step]
