"""Vectors by lookup and by expanding: both equal formats/vectors.matmul exactly, whatever the sizes."""

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.errors import KernelError
from lutra.formats import vectors
from lutra.formats.vectors import VectorFormat, VectorWeight
from lutra.kernels import activations, choose, matmul_mad, matmul_vector, vector_expand, vector_tables
from lutra.kernels.buffers import aligned
from lutra.kernels.elementwise import silu_spec
from lutra.kernels.tiles import interleave_rows, tile_mad
from lutra.kernels.tiles_vector import tile_gated, tile_vector
from tests.formats.parts import random_vectors
from tests.kernels.linears import random_activations, run, state

ISAS = [target.isa for target in targets.available()]
NAMES = ["vectors2", "vectors4", "vectors8", "vectors4x2", "vectors8x2"]
ROWS = 4  # of the buffers


def form(name: str) -> VectorFormat:
    found = vectors.find(name)
    assert found is not None
    return found


def look_up(tiled, x, y, m, **options):
    room = aligned(vector_tables.tables_bytes(tiled, ROWS), np.uint8)
    for step in matmul_vector.bind(tiled, x, room, y, state(m), **{"epilogue": "store", "tile_m": 1, **options}):
        run(step, m)
    return y


def multiply(tiled, x, y, m, isa=None, **options):
    room = aligned(vector_expand.expanded_bytes(tiled), np.uint8)
    step, weight = vector_expand.bind(tiled, room, isa=isa)
    run(step, m)
    run(matmul_mad.bind(weight, x, y, state(m), **{"epilogue": "store", "tile_m": 1, "isa": isa, **options}), m)
    return y


def check(name: str, m: int, n: int, k: int, isa: str, tile_m: int = 1) -> None:
    w = random_vectors(form(name), n, k, seed=n + k)
    x = random_activations(w, m, ROWS)
    want = vectors.matmul(x.xq[:m], x.xs[:m], w)
    padded = -(-n // 32) * 32
    for way in (look_up, multiply):
        y = way(tile_vector(w), x, np.full((ROWS, padded + 32), np.nan, np.float32), m, isa=isa, tile_m=tile_m)
        assert y[:m, :n].tobytes() == want.tobytes(), (way.__name__, name, m, n, k, isa)
        assert not y[:m, n:padded].any() and np.isnan(y[:, padded:]).all()


def test_by_hand():
    """Two vectors of two: 3 - 2 + 3 + 8 = 12, times 0.5."""
    books = np.zeros((1, 256, 2), np.int8)
    books[0, 200], books[0, 3] = [1, 2], [3, -1]
    indices = np.zeros((1, 1, 16), np.uint8)
    indices[0, 0, :2] = [3, 200]
    w = VectorWeight(VectorFormat(2), (1, 4), indices, books, np.array([[0.5]], np.float32))
    x = activations.allocate(ROWS, 4, w.format)
    x.xq[0, :4], x.xs[0], x.sums[0] = [1, 2, 3, 4], 1, 10
    for way in (look_up, multiply):
        y = way(tile_vector(w), x, np.zeros((ROWS, 32), np.float32), 1)
        assert y[0, 0] == 6.0 and not y[0, 1:].any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_specification(name, isa):
    check(name, 3, 33, 97, isa)


@pytest.mark.parametrize("m,n,k", [(1, 1, 1), (2, 128, 32), (1, 129, 64), (3, 300, 160)])
@pytest.mark.parametrize("name", ["vectors2", "vectors8x2"])
def test_sizes(name, m, n, k):
    check(name, m, n, k, ISAS[0], tile_m=2)


@pytest.mark.parametrize("name", ["vectors2", "vectors4x2"])
def test_sums_of_16_bits_do_not_overflow(name):
    """More lookups than 16 bits hold, of the largest entries there are."""
    check(name, 2, 20, 4 * 257 + 300, ISAS[0])


@pytest.mark.parametrize("name", ["vectors4", "vectors8x2"])
def test_gate_and_up_with_books_of_their_own(name):
    gate, up = (random_vectors(form(name), 70, 96, seed=seed) for seed in (1, 2))
    tiled, x = tile_gated(gate, up), random_activations(gate, 2, ROWS)
    g, u = (vectors.matmul(x.xq[:2], x.xs[:2], w) for w in (gate, up))
    for way in (look_up, multiply):
        y = way(tiled, x, np.zeros((ROWS, 96), np.float32), 2, epilogue="silu")
        assert y[:2, :70].tobytes() == (silu_spec(g) * u).astype(np.float32).tobytes()


def test_bias_column_and_sum():
    w = random_vectors(form("vectors8"), 40, 64)
    x, bias = random_activations(w, 2, ROWS), np.arange(64, dtype=np.float32)
    want = 1 + (vectors.matmul(x.xq[:2], x.xs[:2], w) + bias[:40])
    for way in (look_up, multiply):
        y = way(tile_vector(w), x, np.ones((ROWS, 128), np.float32), 2, epilogue="add", bias=bias, column=32)
        assert y[:2, 32:72].tobytes() == want.tobytes() and (y[:2, :32] == 1).all()


@pytest.mark.parametrize("name", NAMES)
def test_expanding_is_re_coding(name):
    """The codes are those of as_int8; and of gate and up, of both interleaved."""
    gate, up = (random_vectors(form(name), 50, 96, seed=seed) for seed in (1, 2))
    both = interleave_rows(gate.as_int8(), up.as_int8())
    for tiled, want in ((tile_vector(gate), tile_mad(gate.as_int8())), (tile_gated(gate, up), tile_mad(both))):
        room = aligned(vector_expand.expanded_bytes(tiled), np.uint8)
        step, made = vector_expand.bind(tiled, room)
        run(step, 1)
        n, got = tiled.n, [w.codes.reshape(w.num_pairs, 24, 2, 16, 4) for w in (made, want)]
        rows = [codes.transpose(0, 2, 3, 1, 4).reshape(-1, 96)[:n] for codes in got]
        is_row = np.any(tiled.scales.view(np.float32)[:n].reshape(-1, 1), 1)  # those between gate and up stand for none
        assert np.array_equal(rows[0][is_row], rows[1][is_row]) and is_row.sum() == n // 50 * 50


def test_errors():
    w = random_vectors(form("vectors8"), 40, 64)
    tiled, x, y = tile_vector(w), random_activations(w, 1, ROWS), np.zeros((ROWS, 64), np.float32)
    room = aligned(vector_tables.tables_bytes(tiled, ROWS), np.uint8)
    with pytest.raises(KernelError, match="expected a weight in vector order, got mad"):
        matmul_vector.bind(tile_mad(w.as_int8()), x, room, y, state(1), epilogue="store", tile_m=1)
    with pytest.raises(KernelError, match="expected tables of 2 rows"):
        matmul_vector.bind(tiled, x, room[:100], y, state(1), epilogue="store", tile_m=2)
    with pytest.raises(KernelError, match="expected a weight in vector order, got mad"):
        vector_expand.bind(tile_mad(w.as_int8()), room)
    with pytest.raises(KernelError, match="expected room for 8192 codes, got 100"):
        vector_expand.bind(tiled, room[:100])
    other = random_activations(random_vectors(form("vectors8"), 1, 96), 1, ROWS)
    with pytest.raises(KernelError, match="expected activations of 64 columns"):
        vector_tables.bind(tiled, other, room, state(1))


@pytest.mark.parametrize("name", ["vectors2", "vectors8x2"])
def test_damaged_weights_stay_inside(name):
    """Any bytes as indices and books: the interpreter, which checks every access, and machine code agree."""
    gate, rng = random_vectors(form(name), 40, 32), np.random.default_rng(0)
    tiled, x, results = tile_gated(gate, gate), random_activations(gate, 1, 1), []
    tiled.codes[:], tiled.books[:] = rng.integers(0, 256, tiled.codes.size), rng.integers(0, 256, tiled.books.size)
    for interpreted in (True, False):
        room = aligned(vector_tables.tables_bytes(tiled, 1), np.uint8)
        codes, y = aligned(vector_expand.expanded_bytes(tiled), np.uint8), aligned((1, 96), np.float32)
        expanded, _ = vector_expand.bind(tiled, codes)
        for step in (expanded, *matmul_vector.bind(tiled, x, room, y, state(1), epilogue="store", tile_m=1)):
            if interpreted:
                step.launch.interpret(step.count(1))
            else:
                step.launch.run(0, step.count(1))
        results.append((room.tobytes(), codes.tobytes(), y.tobytes()))
    assert results[0] == results[1]


@pytest.mark.parametrize("rows", [1, 4, 9, 64])
@pytest.mark.parametrize("name", ["vectors2", "vectors8", "vectors8x2"])
def test_any_number_of_rows_gives_the_same_bits(name, rows):
    """Few rows are looked up, many multiplied: choose.steps."""
    w, asked = random_vectors(form(name), 130, 96), []
    x, y = random_activations(w, rows, 64), np.zeros((64, 160), np.float32)

    def room(num_bytes):
        asked.append(num_bytes)
        return aligned(num_bytes, np.uint8)

    tiled = choose.tile(w)
    for step in choose.steps(tiled, x, y, state(rows), rows=rows, room=room, epilogue="store"):
        run(step, rows)
    assert y[:rows, :130].tobytes() == vectors.matmul(x.xq[:rows], x.xs[:rows], w).tobytes()
    are_few = rows <= choose.LOOKUP_ROWS[w.format.length] // w.format.terms
    assert asked == [vector_tables.tables_bytes(tiled, rows) if are_few else vector_expand.expanded_bytes(tiled)]
