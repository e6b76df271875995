"""Vector codebooks by hand, and their two roads to the same bits."""

import doctest
from dataclasses import replace

import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.formats import integer, vectors
from lutra.formats.vectors import VectorFormat, VectorWeight
from tests.formats.parts import random_vectors

NAMES = ["vectors2", "vectors4", "vectors8", "vectors4x2", "vectors8x2"]


def form(name: str) -> VectorFormat:
    found = vectors.find(name)
    assert found is not None
    return found


def test_docstrings():
    assert doctest.testmod(vectors).failed == 0


def test_two_books_by_hand():
    """Rows (2, -1, 0, 5) + (1, 1, 1, 1) and (1, 1, 1, 1) - (0, 0, 0, 1), times 2 and -1."""
    books = np.zeros((2, 256, 4), np.int8)
    books[0, 7], books[0, 255] = [2, -1, 0, 5], [1, 1, 1, 1]
    books[1, 0], books[1, 9] = [1, 1, 1, 1], [0, 0, 0, -1]
    indices = np.zeros((2, 2, 8), np.uint8)
    indices[:, :, 0] = [[7, 0], [255, 9]]
    w = VectorWeight(VectorFormat(4, 2), (2, 4), indices, books, np.array([[2], [-1]], np.float32))
    assert w.dequantize().tolist() == [[6, 0, 2, 12], [-1, -1, -1, 0]]
    x = np.pad(np.array([[1, 2, 3, 4]], np.int8), ((0, 0), (0, 28)))
    assert vectors.matmul(x, np.ones((1, 1), np.float32), w).tolist() == [[6 + 6 + 48, -6]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (40, 96)])
def test_looking_up_is_multiplying_by_int8(name, shape):
    w = random_vectors(form(name), *shape)
    rng = np.random.default_rng(1)
    xq = np.zeros((3, w.format.padded_k(shape[1])), np.int8)
    xq[:, : shape[1]] = rng.choice(np.array([-127, 127, 3], np.int8), (3, shape[1]))
    xs = rng.random((3, 1), np.float32)
    want = integer.matmul(xq, xs, w.as_int8())
    assert vectors.matmul(xq, xs, w).tobytes() == want.tobytes()
    assert w.as_int8().dequantize().tobytes() == w.dequantize().tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_largest_centroids_fit_the_tables(name):
    """258 * 127 and its negative are int16; nothing wraps."""
    f = form(name)
    book = np.zeros((256, f.length), np.int32)
    book[1:3] = [[(vectors.MAX_MAGNITUDE // f.terms + place) // f.length for place in range(f.length)]] * 2
    books = np.stack([np.minimum(book, 127 // f.terms)] * f.terms).astype(np.int8)
    books[:, 2] *= -1
    tables = vectors.build_tables(np.full((1, f.length), 127, np.int8), books)
    want = books.astype(int).sum(-1) * 127
    assert np.array_equal(tables[0, 0], want) and np.abs(want).max() <= 32766


def test_rows_and_stacks():
    w = random_vectors(form("vectors8x2"), 12, 64)
    parts = [w.rows(slice(0, 5)), w.rows([5, 6]), w.rows(slice(7, None))]
    assert np.array_equal(VectorWeight.concat(parts).dequantize(), w.dequantize())
    with pytest.raises(FormatError, match="one format, K and books"):
        VectorWeight.concat([w, replace(w, books=-w.books)])


@pytest.mark.parametrize("name", NAMES)
def test_names_and_axes_come_back(name):
    f = form(name)
    assert f.name == name and vectors.from_axes(vectors.axes_of(f)) == f


@pytest.mark.parametrize("name", ["vectors3", "vectors8x3", "vectors", "planes4-g32"])
def test_names_of_other_formats(name):
    assert vectors.find(name) is None


@pytest.mark.parametrize("axes", [{}, {"vector_length": 8}, {"vector_length": True, "terms": 1},
                                  {"vector_length": 3, "terms": 1}, {"vector_length": 8, "terms": 3},
                                  {"vector_length": 8, "terms": 1, "bits": 8}])  # fmt: skip
def test_axes_that_are_none(axes):
    with pytest.raises(FormatError, match="expected"):
        vectors.from_axes(axes)


def test_damaged_weights():
    w = random_vectors(form("vectors4x2"), 4, 32)

    def made(**parts):
        return VectorWeight(**{**{name: getattr(w, name) for name in
                                  ("format", "shape", "indices", "books", "scales")}, **parts})  # fmt: skip

    def with_level(term, level, place=0):
        books = np.zeros_like(w.books)
        books[0, 0, 0] = 100
        books[term, 1, place] = level
        return books

    with pytest.raises(FormatError, match=r"indices: expected uint8 \[4, 2, 8\]"):
        made(indices=w.indices[:, :1])
    with pytest.raises(FormatError, match=r"indices: expected uint8"):
        made(indices=w.indices.astype(np.uint16))
    with pytest.raises(FormatError, match=r"books: expected int8 \[2, 256, 4\]"):
        made(books=w.books[:, :16])
    with pytest.raises(FormatError, match="scales: expected finite"):
        made(scales=np.full((4, 1), np.inf, np.float32))
    with pytest.raises(FormatError, match="add up to 258"):
        made(books=np.full_like(w.books, 65))
    with pytest.raises(FormatError, match="add up to -128"):
        made(books=with_level(1, 28))
    made(books=with_level(1, 27))
    with pytest.raises(FormatError, match="add up to -128"):
        made(books=with_level(0, -128, 1) + with_level(1, -1, 1) - with_level(0, 0))
    with pytest.raises(FormatError, match="65536 columns"):
        made(shape=(4, 65537))


def test_a_format_drawn():
    lines = vectors.draw(form("vectors8x2")).splitlines()
    assert lines[0] == "vectors8x2   one byte for 8 weights, 2 books of 256 centroids of int8 levels, one scale per row"
    assert "W[n, k] = scale[n] * sum over t = 0 .. 1 of book[t, indices[n, t, k // 8], k % 8]" in lines[2]
    assert "2 bits per weight, 4 bytes per row, 4096 bytes per matrix" in lines[3]
    assert set(vectors.NAMES) <= set(NAMES)
