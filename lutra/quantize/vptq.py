"""Vector quantisation: an index names several weights at once, so that fewer than 2 bits per weight still have a shape.

Neighbouring inputs of one output form a vector; an index points into a codebook, a second one into a codebook of what
the first left over.

    rows       are scaled to a mean square of 1 first; the scale is stored
    codebook   k-means of the vectors; a vector counts by the mean square of its inputs, the diagonal of the hessian
    levels     centroids rounded to int8, as fine as formats/vectors.py allows
    choice     vector by vector along inputs; each row takes its nearest centroid, and the columns to come make up for
               the error, as in GPTQ
    residual   a codebook for the errors of that pass, and a second pass that uses both

Without a hessian all inputs count the same and nothing is made up for.  The tuning of centroids by gradients, from
which VPTQ has its best numbers, its codebooks for outlier columns, and more than 256 centroids are left out.

Sources   VPTQ, arXiv 2409.17066, sections 3 and 4 (algorithms 1 and 2), which has vectors along outputs; GPTVQ, arXiv
          2402.15319, section 3.2, for errors of several columns at once
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lutra.errors import FormatError
from lutra.formats.vectors import CENTROIDS, MAX_MAGNITUDE, VectorFormat, VectorWeight
from lutra.quantize.gptq import DAMP, Factor
from lutra.quantize.rounding import as_finite_f32

ROUNDS = 40
TOLERANCE = 1e-5  # of the error: k-means stops when a round gains less
SAMPLE = 1 << 16  # vectors that k-means looks at, of larger matrices
SCORES_AT_ONCE = 1 << 17  # distances held at a time: they stay in the cache
PANEL = 128  # columns whose errors reach those behind the panel together
SMALLEST = np.float32(1e-30)


def vptq(w: np.ndarray, format: VectorFormat, hessian: np.ndarray | Factor | None = None, *, rounds: int = ROUNDS,
         damp: float = DAMP, seed: int = 0) -> VectorWeight:  # fmt: skip
    """Quantise to vectors.

    w          float [N, K]    finite
    hessian    float [K, K]    x.T x over calibration tokens, times any factor; or what was made of it before
    rounds     of k-means, at most
    seed       of the vectors that k-means starts from
    raises     FormatError     weights that are not finite, a hessian of another shape

    >>> w = np.array([[1, 1, -1, 1], [-2, 2, 2, 2]], np.float32)                   # vectors (1, 1) and (-1, 1), scaled
    >>> vptq(w, VectorFormat(2)).dequantize().tolist()
    [[1.0, 1.0, -1.0, 1.0], [-2.0, 2.0, 2.0, 2.0]]
    """
    w = as_finite_f32(w)
    k, length = w.shape[1], format.length
    factor = hessian if isinstance(hessian, Factor) or hessian is None else _factor(hessian, damp)
    if factor is not None and len(factor.order) != k:
        raise FormatError(f"expected a hessian [{k}, {k}], got one of {len(factor.order)}; it is another weight's")
    if factor is not None and (np.diff(factor.order) < 0).any():
        raise FormatError("expected columns in their own order, got others; quantise to vectors without act-order")
    size = np.maximum(np.sqrt(np.square(w).mean(1, keepdims=True)), SMALLEST)
    rows = np.pad(w / size, ((0, 0), (0, -k % length)))
    upper = None if factor is None else _padded(factor.upper, rows.shape[1])
    counts = np.square(size) * _input_weights(upper, rows.shape[1]).reshape(-1, length).mean(1)  # [N, V]
    rng = np.random.Generator(np.random.PCG64(seed))
    books = [_kmeans(rows.reshape(-1, length), counts.reshape(-1), rounds, rng)]
    if format.terms > 1:
        _, errors = _choose(rows, books, upper)
        books.append(_kmeans(errors.reshape(-1, length), counts.reshape(-1), rounds, rng))
    levels, unit = _as_levels(np.stack(books))
    indices, _ = _choose(rows, [book * unit for book in levels.astype(np.float32)], upper)
    padded = np.zeros((len(w), format.terms, format.num_vectors(k)), np.uint8)
    padded[:, :, : indices.shape[2]] = indices
    return VectorWeight(format, w.shape, padded, levels, size * unit)


def _factor(hessian: np.ndarray, damp: float) -> Factor:
    return Factor.of(hessian, damp)


def _padded(upper: np.ndarray, k: int) -> np.ndarray:
    """The factor with columns that touch no others."""
    padded = np.eye(k, dtype=np.float32)
    padded[: len(upper), : len(upper)] = upper
    return padded


def _input_weights(upper: np.ndarray | None, k: int) -> np.ndarray:
    """How much an error in each column counts once the columns behind make up for it: 1 / U[j, j]**2, f32 [K]."""
    return np.ones(k, np.float32) if upper is None else 1 / np.square(np.diagonal(upper))


def _choose(w: np.ndarray, books: list[np.ndarray], upper: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Take the nearest vectors, along the inputs.

    w        f32 [N, K]     K a multiple of the length
    books    f32 [centroids, length] each
    upper    f32 [K, K] of gptq.Factor, or None
    returns  indices uint8 [N, T, K / length], and what was left of each vector when it was its turn, f32 [N, K]
    """
    n, k = w.shape
    length = books[0].shape[1]
    if upper is None:
        found, left = _nearest_of_all(w.reshape(-1, length), books, np.ones(length, np.float32))
        return found.reshape(n, -1, len(books)).swapaxes(1, 2), left.reshape(n, k)
    moved, left = w.copy(), np.empty_like(w)
    indices = np.empty((n, len(books), k // length), np.uint8)
    for start in range(0, k, PANEL):
        end = min(start + PANEL, k)
        errors = np.empty((n, end - start), np.float32)
        for j in range(start, end, length):
            own = slice(j, j + length)
            roots = 1 / np.diagonal(upper)[own]
            found, left[:, own] = _nearest_of_all(moved[:, own], books, roots)
            indices[:, :, j // length] = found
            error = left[:, own] @ np.linalg.inv(upper[own, own])
            moved[:, j + length : end] -= error @ upper[own, j + length : end]
            errors[:, j - start : j - start + length] = error
        moved[:, end:] -= errors @ upper[start:end, end:]
    return indices, left


def _nearest_of_all(vectors: np.ndarray, books: list[np.ndarray], roots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take the nearest of each book in turn: uint8 [V, T], and what is left, f32 [V, length]."""
    found = []
    for book in books:
        found.append(_nearest(vectors * roots, book * roots))
        vectors = vectors - book[found[-1]]
    return np.stack(found, 1), vectors


def _as_levels(books: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Round the books' entries to whole numbers, as large as the bounds of formats/vectors.py let them be.

    books    f32 [T, centroids, length]
    returns  int8 [T, 256, length], and what one is worth
    """
    terms, centroids, length = books.shape
    reach = np.maximum(books.max(1).sum(0), -books.min(1).sum(0)).max()  # of sums
    magnitude = np.abs(books).sum(-1).max()
    unit = np.float32(max(reach / (128 - terms), magnitude / (MAX_MAGNITUDE - length / 2), SMALLEST))
    levels = np.zeros((terms, CENTROIDS, length), np.int8)
    levels[:, :centroids] = np.rint(books / unit)
    return levels, unit


def _kmeans(vectors: np.ndarray, counts: np.ndarray, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """Cluster vectors, each of which counts so much; returns f32 [256 or as many as there are vectors, length]."""
    if len(vectors) > SAMPLE:
        some = rng.choice(len(vectors), SAMPLE, replace=False)
        vectors, counts = vectors[some], counts[some]
    centroids = min(CENTROIDS, len(vectors))
    counts = counts.astype(np.float64) + counts.mean() * 1e-9 + 1e-300
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
        if not used.all():  # those start anew where the error is largest
            book[~used] = vectors[np.argsort(-errors, kind="stable")[: np.count_nonzero(~used)]]
    return book


def _nearest(vectors: np.ndarray, book: np.ndarray) -> np.ndarray:
    """Return the nearest centroid of each vector, uint8."""
    half = (book**2).sum(1) / 2
    return np.concatenate([(half - some @ book.T).argmin(1).astype(np.uint8) for some in _runs(vectors, len(book))])


def _runs(vectors: np.ndarray, centroids: int) -> Iterator[np.ndarray]:
    step = max(1, SCORES_AT_ONCE // centroids)
    for start in range(0, len(vectors), step):
        yield vectors[start : start + step]
