"""Sizes that a file must have are the sizes that tiling makes; and no code, however damaged, leads out of a buffer."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.formats.vectors import VectorFormat
from lutra.kernels import choose, stored
from lutra.kernels.activations import allocate
from lutra.kernels.buffers import aligned
from lutra.kernels.tiles import TiledWeight, tile_dense
from lutra.kernels.tiles_trit import LARGEST
from lutra.kernels.tiles_vector import tile_gated, tile_vector
from tests.formats.parts import random_vectors
from tests.kernels.linears import random_activations, random_weight, state

QUANTISED = [order for order in stored.EXTENTS if order != "dense"]
SIZES = [(1, 1), (32, 32), (33, 97), (64, 160), (65, 300), (130, 64)]


def test_by_hand():
    """33 rows of 97 ternary weights in mad order: two pairs of rows, four chunks of 32 at 2 bits, a scale a row."""
    sizes = stored.array_bytes(choose.tile(random_weight(catalog.ternary(), 33, 97), order="mad"))
    assert sizes == {"codes": 64 * 4 * 8, "scales": 64 * 4, "zeros": 1, "mins": 1, "super_scales": 1, "super_mins": 1,
                     "books": 1}  # fmt: skip


def test_every_order_has_a_row():
    others = set(stored.EXTENTS) - {"vector"}  # which takes two launches, and no Format: choose.steps
    assert others == set(choose.FAMILIES) == {*choose.TILE, "dense"}


@pytest.mark.parametrize("name", catalog.FORMATS)
@pytest.mark.parametrize("order", QUANTISED)
def test_sizes_are_those_that_tiling_makes(order, name):
    format = catalog.FORMATS[name]
    if not stored.EXTENTS[order].holds(format):
        with pytest.raises(FormatError):
            choose.tile(random_weight(format, 32, 32), order=order)
        return
    for n, k in SIZES:
        weight = choose.tile(random_weight(format, n, k), order=order)
        assert stored.array_bytes(weight) == {part: getattr(weight, part).nbytes for part in stored.ARRAYS}, (n, k)
        stored.check(weight)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_dense_sizes(dtype):
    for n, k in SIZES:
        stored.check(tile_dense(np.ones((n, k), dtype)))


def test_books_keep_their_bounds_and_agree():
    weight = tile_vector(random_vectors(VectorFormat(8), 40, 64))
    stored.check(weight)
    loud = aligned(weight.books.size, np.uint8)
    loud[:] = 255  # 127 in all eight places
    with pytest.raises(FormatError, match="add up to 258"):
        stored.check(dataclasses.replace(weight, books=loud))
    weight.books[0] ^= 1  # in a part only
    with pytest.raises(FormatError, match="parts and places"):
        stored.check(weight)


def tiled(name: str = "planes4-g32-zeros", order: str = "mad") -> TiledWeight:
    return choose.tile(random_weight(catalog.find(name), 40, 96), order=order)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n": 0}, "padded_n"),
        ({"n": 65}, "padded_n"),
        ({"padded_n": 63}, "padded_n"),
        ({"padded_n": 192}, "padded_n"),
        ({"padded_n": 96}, "codes"),
        ({"padded_k": 128}, "padded_k: expected 96"),
        ({"k": 97}, "padded_k: expected 128"),
        ({"k": 128, "padded_k": 128}, "codes"),
        ({"codes": np.zeros(64, np.uint8)}, "codes"),
        ({"scales": np.zeros(1, np.uint8)}, "scales"),
        ({"zeros": np.zeros(1, np.uint8)}, "zeros"),
        ({"mins": aligned(64, np.uint8)}, "mins"),
        ({"order": "zigzag"}, "'zigzag'"),
        ({"order": "dense"}, "planes4-g32-zeros"),
        ({"format": None, "dtype": "f32", "order": "dense"}, "codes"),
        ({"format": None, "dtype": "f32"}, "mad order"),
        ({"format": catalog.int8(32), "order": "lut"}, "lut order"),
    ],
    ids=str,
)
def test_sizes_that_do_not_belong_together(changes, words):
    with pytest.raises(FormatError, match=words):
        stored.check(dataclasses.replace(tiled(), **changes))


def test_sizes_of_vectors():
    """130 rows of 97 weights: two tiles of 128 rows, 128 / 8 indices each; books of one side or of both."""
    form = VectorFormat(8)
    one = tile_vector(random_vectors(form, 130, 97))
    assert stored.array_bytes(one) | {"books": 0} == dict.fromkeys(stored.ARRAYS, 1) | {
        "codes": 256 * 16, "scales": 256 * 4, "books": 0}  # fmt: skip
    for terms in (1, 2):
        for length in (2, 4, 8):
            for n, k in SIZES:
                w = random_vectors(VectorFormat(length, terms), n, k)
                for weight in (tile_vector(w), tile_gated(w, w)):
                    want = {part: getattr(weight, part).nbytes for part in stored.ARRAYS}
                    assert stored.array_bytes(weight) == want, (length, terms, n, k)
                    stored.check(weight)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"padded_n": 288}, "padded_n"),
        ({"k": 129, "padded_k": 160}, "codes"),
        ({"codes": aligned(4096 - 64, np.uint8)}, "codes"),
        ({"scales": aligned(512, np.uint8)}, "scales"),
        ({"books": aligned(64, np.uint8)}, "books"),
        ({"books": aligned(3 * 2048, np.uint8)}, "books"),
        ({"format": VectorFormat(8, 2)}, "codes"),
        ({"format": VectorFormat(2)}, "codes"),
        ({"order": "mad"}, "mad order takes, got vectors8"),
        ({"order": "dense"}, "dense order takes, got vectors8"),
        ({"format": catalog.int8(0)}, "vector order takes, got int8-row"),
    ],
    ids=str,
)
def test_sizes_of_vectors_that_do_not_belong_together(changes, words):
    weight = tile_vector(random_vectors(VectorFormat(8), 130, 97))
    with pytest.raises(FormatError, match=words):
        stored.check(dataclasses.replace(weight, **changes))


def test_arrays_off_their_cache_line():
    weight = tiled()
    moved = aligned(weight.codes.size + 64, np.uint8)[16:][: weight.codes.size]
    with pytest.raises(FormatError, match="cache line"):
        stored.check(dataclasses.replace(weight, codes=moved))


def test_too_many_weights_to_a_scale():
    weight = dataclasses.replace(tiled("ternary"), k=1 << 17, padded_k=1 << 17)
    with pytest.raises(FormatError, match="65536"):
        stored.check(weight)


@pytest.mark.parametrize("name", [
    "ternary", "planes3-g64-zeros", "planes4-g32-mins", "planes1x2-g32", "iq2-g16-u8xf32", "e2m3-g32-e8m0",
    "e2m1-g16-e4m3xf32-row",
])  # fmt: skip
@pytest.mark.parametrize("order", QUANTISED)
def test_damaged_codes_stay_inside(order, name):
    """Any bytes in the place of codes: the interpreter, which checks every access, and machine code agree."""
    format = catalog.find(name)
    if not stored.EXTENTS[order].holds(format):
        return
    w = random_weight(format, 32, 32)
    weight = choose.tile(w, order=order)
    for codes in (np.full_like(weight.codes, 255), np.random.default_rng(0).integers(0, 256, weight.codes.size)):
        weight.codes[:] = codes
        results = []
        for interpreted in (True, False):
            x, y = activations(w, order), aligned((1, 64), np.float32)
            step = choose.bind(weight, x, y, state(1), epilogue="store", tile_m=1)
            if interpreted:
                step.launch.interpret(step.count(1))
            else:
                step.launch.run(0, step.count(1))
            results.append(y.tobytes())
        assert results[0] == results[1]


def activations(w, order):
    """Random activations for one row, with the tables that lookups read."""
    x, rng = random_activations(w, 1, 1), np.random.default_rng(1)
    filled = allocate(1, w.shape[1], w.format, with_tables=order == "lut", with_trits=order == "trit5")
    if filled.tables is not None:
        filled.tables[:] = rng.integers(0, 32, filled.tables.shape)
    if filled.trits is not None:
        # small enough for the sums that the kernel expands them to
        filled.trits[:] = rng.integers(-(LARGEST // 3), LARGEST // 3 + 1, filled.trits.shape)
        assert filled.places is not None
        filled.places[:] = rng.integers(-127, 128, filled.places.shape)
    return dataclasses.replace(x, tables=filled.tables, trits=filled.trits, places=filled.places)
