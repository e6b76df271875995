"""Many rows by tile registers: interpreted everywhere, native where the CPU has them, equal to formats/integer.py."""

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.errors import KernelError
from lutra.formats import catalog, integer
from lutra.formats.format import Format
from lutra.kernels import choose, matmul_tiles
from lutra.kernels.buffers import aligned
from lutra.kernels.elementwise import relu2_spec
from lutra.kernels.mad import arguments
from lutra.kernels.matmul_tiles import depth_of
from lutra.kernels.plan import TILE_BLOCKS, tile_blocks
from lutra.kernels.tiles import interleave_rows, tile_mad
from tests.cover import axes_of, cover
from tests.kernels.linears import random_activations, random_weight, run, state

WITH_TILES = [target.isa for target in targets.available() if target.has_tiles]
needs_tiles = pytest.mark.skipif(not WITH_TILES, reason="needs a CPU with AMX tiles, and leave to use them")
BLOCKS = TILE_BLOCKS["mad"]
# a scale per row, groups shorter than a chunk and longer than a tile, terms, tables, zeros, mins of two levels
KINDS = ["ternary", "planes1-row-mins", "planes6-g16", "planes4-g128-zeros", "planes1x3-g128-mins", "iq4nl-g32-i8xf16",
         "int8-g32", "planes2-g64"]  # fmt: skip


def interpreted(format: Format, m: int, n: int, k: int, tile_m: int) -> tuple[np.ndarray, np.ndarray]:
    """The kernel's y [M, N] by its meaning in NumPy, and what integer.matmul says."""
    w = random_weight(format, n, k, seed=n + k)
    rows = max(tile_m, -(-m // 16) * 16)
    tiled, x = tile_mad(w), random_activations(w, m, rows)
    y = np.full((rows, tiled.padded_n), np.nan, np.float32)
    args = arguments(tiled, x, y, state(m), "store", None, 0, tile_m)
    tasks = tiled.num_pairs * -(-m // tile_m)
    static = dict(format=format, epilogue="store", has_bias=False, tile_m=tile_m, depth=depth_of(tiled))
    matmul_tiles.matmul_tiles.interpret(args, tasks, **static)
    assert np.isnan(y[m:]).all()
    return y[:m, :n], integer.matmul(x.xq[:m], x.xs[:m], w)


@pytest.mark.parametrize("name", KINDS)
def test_the_meaning_is_that_of_the_format(name):
    got, want = interpreted(catalog.find(name), 9, 33, 200, 12)
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("m, tile_m", [(1, 8), (37, 32), (45, 16), (20, 20), (29, 20)])
def test_the_last_block_reads_whole_tiles_and_stores_its_own_rows(m, tile_m):
    got, want = interpreted(catalog.find("planes4-g32"), m, 20, 64, tile_m)
    assert got.tobytes() == want.tobytes()


def native(format: Format, m: int, n: int, k: int, tile_m: int, **options) -> tuple[np.ndarray, np.ndarray]:
    w = random_weight(format, n, k, seed=n + k)
    rows = max(tile_m, -(-m // 16) * 16)
    tiled, x = tile_mad(w), random_activations(w, m, rows)
    y = np.full((rows, tiled.padded_n), np.nan, np.float32)
    run(matmul_tiles.bind(tiled, x, y, state(m), epilogue="store", tile_m=tile_m, isa=WITH_TILES[0], **options), m)
    assert np.isnan(y[m:]).all()
    return y[:m, :n], integer.matmul(x.xq[:m], x.xs[:m], w)


@needs_tiles
@pytest.mark.parametrize("name", cover(catalog.FORMATS, lambda name: axes_of(catalog.FORMATS[name])))
def test_every_axis_of_a_format(name):
    format = catalog.FORMATS[name]
    if format.is_float or choose.families(format)[0] != "mad":
        pytest.skip("needs a format that mad order takes")
    for m, n, k in ((1, 31, 32), (33, 67, 300), (70, 48, 160)):
        got, want = native(format, m, n, k, 32)
        assert got.tobytes() == want.tobytes(), (m, n, k)


@needs_tiles
@pytest.mark.parametrize("name", KINDS[:3])
@pytest.mark.parametrize("tile_m", BLOCKS)
def test_every_block(name, tile_m):
    for m in {1, tile_m - 1, tile_m, tile_m + 1, 2 * tile_m + 3}:
        got, want = native(catalog.find(name), m, 33, 130, tile_m)
        assert got.tobytes() == want.tobytes(), m


@needs_tiles
def test_gates_and_residuals_are_finished_as_elsewhere():
    """Rows of a gate and of an up matrix alternate in tiles; a bias is added first; `add` keeps what was there."""
    format, m, n, k = catalog.find("planes4-g32"), 18, 40, 96
    gate, up = (random_weight(format, n, k, seed) for seed in (1, 2))
    x = random_activations(gate, m, 32)
    both = tile_mad(interleave_rows(gate, up))
    y, bias = aligned((32, 64), np.float32), aligned(both.padded_n, np.float32)
    run(matmul_tiles.bind(both, x, y, state(m), epilogue="relu2", bias=bias, tile_m=20, isa=WITH_TILES[0]), m)
    parts = [integer.matmul(x.xq[:m], x.xs[:m], w) for w in (gate, up)]
    assert y[:m, :n].tobytes() == (relu2_spec(parts[0]) * parts[1]).tobytes()
    before = y[:m, :n].copy()
    run(matmul_tiles.bind(tile_mad(gate), x, y, state(m), epilogue="add", tile_m=20, isa=WITH_TILES[0]), m)
    assert y[:m, :n].tobytes() == (before + parts[0]).tobytes()


def test_fewer_rows_than_a_block_are_refused():
    w = random_weight(catalog.find("ternary"), 16, 32)
    x, y = random_activations(w, 4, 16), aligned((16, 64), np.float32)
    with pytest.raises(KernelError, match="activations of at least 32 rows, got 16"):
        matmul_tiles.bind(tile_mad(w), x, y, state(4), epilogue="store", tile_m=32)


@needs_tiles
def test_a_model_takes_tiles_from_five_rows_on():
    tiled = tile_mad(random_weight(catalog.find("ternary"), 16, 32))
    chosen = [choose.tile_m(tiled, rows, WITH_TILES[0]) for rows in (1, 4, 5, 16, 17, 32, 33, 500)]
    assert chosen == [1, 4, 8, 16, 20, 32, 32, 32]
    assert tile_blocks("mad", "avx512") == () != tile_blocks("mad", WITH_TILES[0])
