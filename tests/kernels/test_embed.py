"""An embedding row is exactly the row of QTensor.dequantize, read out of tile order."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from lutra.compiler import targets
from lutra.errors import KernelError
from lutra.formats import catalog
from lutra.formats.qtensor import QTensor
from lutra.kernels import embed
from lutra.kernels.buffers import aligned
from lutra.kernels.tiles import TiledWeight, tile_dense, tile_mad
from lutra.kernels.tiles_lut import tile_lut
from tests.cover import axes_of, cover
from tests.kernels.linears import random_weight, run

ISAS = [target.isa for target in targets.available()]
TOKENS = np.array([0, 49, 17, 31, 32], np.int64)  # of 50: both tiles of both pairs


def rows_of(table: TiledWeight, tokens: np.ndarray = TOKENS, isa: str | None = None) -> np.ndarray:
    x = np.full((len(tokens), table.padded_k), 7, np.float32)
    run(embed.bind(table, tokens, x, isa=isa), len(tokens))
    assert (x[:, table.k :] == 7).all()  # not written
    return x[:, : table.k]


def test_by_hand():
    """Codes 0 1 2 of a ternary row with scale 0.5 are -0.5, 0, 0.5."""
    w = QTensor.from_codes(catalog.ternary(), np.array([[0, 1, 2]], np.uint8), np.array([[0.5]], np.float32))
    assert rows_of(tile_mad(w), np.zeros(2, np.int64)).tolist() == [[-0.5, 0.0, 0.5]] * 2


@pytest.mark.parametrize("name", cover(catalog.FORMATS, lambda name: axes_of(catalog.FORMATS[name])))
def test_every_value_of_every_axis(name):
    for k in (45, 64):
        w = random_weight(catalog.FORMATS[name], 50, k)
        assert np.array_equal(rows_of(tile_mad(w)), w.dequantize()[TOKENS])


@pytest.mark.parametrize("name", [
    "planes1-g128-mins", "ternary", "planes3-g128-zeros", "planes4-g32", "planes1x3-g64-mins",
    "planes2-g16-mins-u8xf16",
])  # fmt: skip
def test_rows_out_of_lut_order(name):
    w = random_weight(catalog.find(name), 100, 300)
    tokens = np.array([0, 17, 33, 63, 64, 99], np.int64)  # all four parts of a tile of 64
    assert np.array_equal(rows_of(tile_lut(w), tokens), w.dequantize()[tokens])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", [
    "planes3-g16-f32", "planes4-g32-mins", "planes2-g128-zeros", "planes4-g32-mins-u8xf16", "planes1x3-g128-mins",
    "e2m1-g16-e4m3xf32-row", "e2m3-g32-e8m0", "iq4nl-g32", "ternary-g32-mins-i8xf32", "signx2-row-bf16",
])  # fmt: skip
def test_every_instruction_set(name, isa):
    w = random_weight(catalog.find(name), 50, 300)
    assert np.array_equal(rows_of(tile_mad(w), isa=isa), w.dequantize()[TOKENS])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("isa", ISAS)
def test_dense_tables_widen_exactly(dtype, isa):
    w = np.random.default_rng(0).standard_normal((50, 45)).astype(dtype)
    assert np.array_equal(rows_of(tile_dense(w), isa=isa), w[TOKENS].astype(np.float32))


@pytest.mark.parametrize(
    "name, tile", [("planes3-g64-mins", tile_mad), ("planes7-g16", tile_mad), ("ternary", tile_lut),
                   ("nf4-g16-mins-u8xf32-row", tile_mad), ("planes1x4-row-mins", tile_mad)]
)
def test_the_interpreter_agrees_and_stays_inside_the_buffers(name, tile):
    step = embed.bind(tile(random_weight(catalog.find(name), 50, 45)), TOKENS, aligned((5, 64), np.float32))
    step.launch.kernel.check(step.launch.args, 5, **step.launch.static)


def test_errors():
    w = random_weight(catalog.find("ternary"), 50, 64)
    with pytest.raises(KernelError, match="at least 64 columns and a token for each of its rows, got x .5, 32."):
        embed.bind(tile_mad(w), TOKENS, np.zeros((5, 32), np.float32))
    with pytest.raises(KernelError, match="in mad, lut, trit5 or dense order, got new"):
        embed.bind(replace(tile_mad(w), order="new"), TOKENS, np.zeros((5, 64), np.float32))
