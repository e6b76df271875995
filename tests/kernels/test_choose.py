"""The tables of choose.py name kernels that exist, and the door gives what the families give."""

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.formats import catalog, integer
from lutra.kernels import choose, matmul_dense
from lutra.kernels.activations import allocate
from lutra.kernels.buffers import aligned
from lutra.kernels.plan import plan_for, tile_blocks
from lutra.kernels.tiles_lut import split_tables
from tests.kernels.linears import random_activations, random_weight, run, state

ISAS = [target.isa for target in targets.available()]


def test_row_blocks_by_hand():
    tiled = choose.tile(random_weight(catalog.find("ternary"), 16, 32), order="mad")
    assert [choose.tile_m(tiled, rows, "portable") for rows in (1, 2, 3, 100)] == [1, 2, 2, 2]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("order", ["mad", "lut"])
def test_the_smallest_block_that_holds_all_rows(isa, order):
    tiled = choose.tile(random_weight(catalog.find("planes4-g32"), 16, 32), order=order)
    usual = choose.row_blocks(order, isa)
    assert list(usual) == sorted(usual) and usual[0] == 1
    padded = set(usual) - set(tile_blocks(order, isa))  # tiles need no padding
    assert all(16 % block == 0 for block in padded)  # buffers are padded to 16 rows
    few = choose.FEW_ROW_BLOCKS.get((order, isa), usual)
    assert set(few) >= set(usual)
    for rows in range(1, 100):
        block, blocks = choose.tile_m(tiled, rows, isa), few if rows <= choose.FEW_ROWS else usual
        assert block <= -(-rows // 16) * 16  # what buffers hold
        blocks = [each for each in blocks if each <= choose.MOST_ROWS_OF_GROUPS or each in tile_blocks(order, isa)]
        if rows <= blocks[-1]:
            assert block == min(each for each in blocks if each >= rows)
        else:  # whole blocks waste fewer rows than those of the largest would
            assert block in blocks and -(-rows // block) * block <= -(-rows // blocks[-1]) * blocks[-1]


def test_blocks_of_a_batch_by_hand():
    """A block of 8 costs 9.5 and one of 12 13.5: 24 rows 2 * 13.5, not 3 * 9.5.  28: 10 + 10 + 9, and 1.5 for each."""
    tiled = choose.tile(random_weight(catalog.find("ternary"), 16, 32), order="mad")
    if "avx512" in ISAS:
        want = {5: 5, 12: 12, 13: 13, 14: 7, 16: 8, 17: 9, 20: 10, 24: 12, 26: 13, 28: 10, 32: 11, 33: 8, 100: 8}
        assert {rows: choose.tile_m(tiled, rows, "avx512") for rows in want} == want


def test_blocks_of_short_groups_by_hand():
    """Rows beyond 8 cost 1.2: a block of 12 costs 14.3, so 24 rows are 3 blocks of 8.  13 rows do not fit."""
    tiled = choose.tile(random_weight(catalog.find("planes4-g32"), 16, 32), order="mad")
    if "avx512" in ISAS:
        want = {12: 12, 13: 7, 16: 8, 17: 9, 24: 8, 32: 8, 33: 8}
        assert {rows: choose.tile_m(tiled, rows, "avx512") for rows in want} == want


@pytest.mark.parametrize("name, spill", [("ternary", 0.0), ("planes4-g32", choose.SPILL_ROWS)])
def test_a_row_more_never_costs_much_more_than_a_row(name, spill):
    """In rows of dot products: the rate of any number of rows is within an eighth of the best of fewer."""
    tiled, best = choose.tile(random_weight(catalog.find(name), 16, 32), order="mad"), 0.0
    for rows in range(1, 33) if "avx512" in ISAS else []:
        rate = rows / choose._block_cost(rows, choose.tile_m(tiled, rows, "avx512"), spill)
        assert rate > 0.875 * best, rows
        best = max(best, rate)


@pytest.mark.parametrize("isa", ISAS)
def test_every_plan_divides_a_pair_and_a_chunk(isa):
    for order in ("mad", "dense"):
        for block in choose.row_blocks(order, isa):
            plan = plan_for(order, isa, block)
            assert plan.tiles in (1, 2) and plan.accumulators in (1, 2, 4, 8) and plan.unroll >= 1


def test_families_of_weights():
    assert choose.choose(np.zeros((2, 2), np.float32)) == "dense"
    assert set(choose.ORDERS.values()) <= set(choose.TILE)
    for (isa, bits), order in choose.ORDERS.items():
        weight = random_weight(catalog.planes(bits, 32), 2, 32)
        if isa in ISAS:
            assert choose.choose(weight, isa) == order == choose.tile(weight, isa).order
    assert choose.tile(random_weight(catalog.planes(1, 32), 2, 32), order="mad").order == "mad"


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "portable"])
@pytest.mark.parametrize("name", ["planes1-g128-mins", "ternary"])
def test_every_family_gives_the_same_bits(name, isa):
    w, m = random_weight(catalog.find(name), 70, 100), 3
    x = random_activations(w, m, 4)
    with_tables = allocate(4, 100, w.format, with_tables=True)
    for part in ("xq", "xs", "sums"):
        getattr(with_tables, part)[:] = getattr(x, part)
    with_tables.tables[:] = split_tables(integer.build_tables(x.xq))
    want = integer.matmul(x.xq[:m], x.xs[:m], w)
    for order in ("mad", "lut"):
        tiled, y = choose.tile(w, order=order), np.zeros((4, 256), np.float32)
        tile_m = choose.tile_m(tiled, m, isa)
        step = choose.bind(tiled, with_tables, y, state(m), epilogue="store", column=64, tile_m=tile_m, isa=isa)
        run(step, m)
        assert y[:m, 64:134].tobytes() == want.tobytes(), order


def test_dense_through_the_door():
    w = np.random.default_rng(0).standard_normal((40, 33)).astype(np.float16)
    x, y = aligned((1, 64), np.float32), aligned((1, 64), np.float32)
    x[:, :33] = 1
    run(choose.bind(choose.tile(w), x, y, state(1), epilogue="store", tile_m=1), 1)
    assert np.array_equal(y[:, :40], matmul_dense.dense_spec(x[:, :33], w))
