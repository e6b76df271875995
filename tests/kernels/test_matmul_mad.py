"""Multiply-add equals formats/integer.py exactly: every format, instruction set, row block and size."""

from itertools import cycle, product

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.compiler.kernel import kernel
from lutra.compiler.language import Pointer, i64, load, store, u8, u32
from lutra.errors import KernelError
from lutra.formats import catalog, integer
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.kernels import choose, matmul_mad
from lutra.kernels.activations import allocate
from lutra.kernels.buffers import aligned
from lutra.kernels.elementwise import relu2_spec, silu_spec
from lutra.kernels.plan import Plan
from lutra.kernels.tiles import interleave_rows, tile_dense, tile_mad
from lutra.kernels.unpack import has_one_field, quad_in_place, shift_in_place
from tests.cover import axes_of, cover
from tests.kernels.linears import random_activations, random_weight, run, state

ISAS = [target.isa for target in targets.available()]
ONE_PER_WIDTH = ["planes1-g32-mins", "ternary", "planes3-g64-mins", "planes4-g128-zeros", "planes5-g32",
                 "planes6-g16-f32", "planes7-g128-zeros", "int8-g32"]  # fmt: skip
# M, N, K: one of the tile, next to the tile, primes; K beside chunks and groups
SIZES = [(1, 1, 1), (2, 31, 32), (3, 32, 33), (7, 33, 97), (8, 48, 160), (16, 2, 64), (33, 67, 300)]


def multiply(w: QTensor, m: int, tile_m: int, isa: str | None = None, **options) -> tuple[np.ndarray, np.ndarray]:
    """The kernel's y [M, N], and what integer.matmul says."""
    rows = -(-m // tile_m) * tile_m
    x, tiled = random_activations(w, m, rows), tile_mad(w)
    y = np.full((rows, tiled.padded_n), np.nan, np.float32)
    run(matmul_mad.bind(tiled, x, y, state(m), epilogue="store", tile_m=tile_m, isa=isa, **options), m)
    smallest = 1e-30 if w.format.scale_dtype == "e8m0" else 0  # e8m0 has no 0 for rows beyond N
    assert np.abs(y[:m, w.shape[0] :]).max(initial=0) <= smallest
    return y[:m, : w.shape[0]], integer.matmul(x.xq[:m], x.xs[:m], w)


def check(format: Format, sizes: list[tuple[int, int, int]], tile_m: int, isa: str) -> None:
    for m, n, k in sizes:
        got, want = multiply(random_weight(format, n, k, seed=n + k), m, tile_m, isa)
        assert got.tobytes() == want.tobytes(), (format.name, m, n, k, tile_m, isa)


def test_by_hand():
    """Ternary +1 -1 0 +1 times 1 2 3 4 is 3; scaled by 0.5 and 2."""
    codes = np.array([[2, 0, 1, 2]], np.uint8)
    w = QTensor.from_codes(catalog.ternary(), codes, np.array([[0.5]], np.float32))
    x, y = allocate(1, 4, w.format), aligned((1, 32), np.float32)
    x.xq[0, :4], x.xs[0], x.sums[0] = [1, 2, 3, 4], 2, 10
    run(matmul_mad.bind(tile_mad(w), x, y, state(1), epilogue="store", tile_m=1), 1)
    assert y[0].tolist() == [3.0] + [0.0] * 31


def test_terms_and_tables_by_hand():
    """One group of 32 ones: twice 0.5 * 32 * (-1) + 4 * 32 * (+1) with signs, and 2**1 * 32 * 12 with a 4-bit float."""
    signs = np.repeat(np.array([[[0], [1]]], np.uint8), 32, axis=2)
    bcq = QTensor.from_codes(catalog.table("sign", 32, terms=2), signs, np.array([[0.5, 4]], np.float16))
    float4 = catalog.table("e2m1", 32, scale_dtype="e8m0")
    mxfp4 = QTensor.from_codes(float4, np.full((1, 32), 7, np.uint8), np.array([[128]], np.uint8))
    for w, want in ((bcq, 2 * (-16 + 128)), (mxfp4, 2 * 768)):
        x, y = allocate(1, 32, w.format), aligned((1, 32), np.float32)
        x.xq[:], x.xs[:], x.sums[:] = 1, 2, 32
        run(matmul_mad.bind(tile_mad(w), x, y, state(1), epilogue="store", tile_m=1), 1)
        assert y[0, 0] == want


def axes(case: tuple[str, str]) -> set:
    """A format, and the value of each of its axes on an instruction set."""
    name, isa = case
    return {name} | {(value, isa) for value in axes_of(catalog.FORMATS[name])}


TURNS = [[*ISAS[turn:], *ISAS[:turn]] for turn in range(len(ISAS))]


@pytest.mark.parametrize(
    "name, isa", cover([case for turn in TURNS for case in zip(catalog.FORMATS, cycle(turn))], axes)
)
def test_every_format_for_one_row_and_for_blocks(name, isa):
    """Every format somewhere, and every value of its axes on every instruction set."""
    format = catalog.FORMATS[name]
    if isa == "portable":  # one row at a time is enough: its code is long and slow to compile
        check(format, SIZES, 1, isa)
    else:
        check(format, SIZES[::3], 1, isa)
        check(format, SIZES, 2, isa)


@pytest.mark.parametrize("name, isa", [*zip(ONE_PER_WIDTH, cycle(ISAS))])
def test_every_width_in_the_largest_block(name, isa):
    format = catalog.find(name)
    check(format, SIZES, choose.row_blocks("mad", isa)[-1], isa)


# a scale per row, per group, several terms, a table of levels
ONE_PER_KIND = ["ternary", "planes4-g32", "planes1x3-g128-mins", "iq4nl-g32-i8xf16"]
FEW = (3, 7, 13, 17, 33)


@pytest.mark.parametrize(
    "name, isa",
    [*((ONE_PER_KIND[0], isa) for isa in ISAS if isa != "portable"), *zip(ONE_PER_KIND[1:], cycle(ISAS[:-1] or ISAS))],
)
def test_any_number_of_rows_and_none_beyond(name, isa):
    """1 to 33 rows in the block chosen for them, then every block, whole and in part; rows beyond are not written.

    Formats after the first take fewer of them: each block is a kernel to compile.
    """
    w, most = random_weight(catalog.find(name), 33, 97), 33
    tiled, x = tile_mad(w), random_activations(w, 48, 48)
    want = integer.matmul(x.xq, x.xs, w)
    chosen = [(m, choose.tile_m(tiled, m, isa)) for m in (range(1, most + 1) if name == ONE_PER_KIND[0] else FEW)]
    blocks = {block for _, block in chosen}
    for m, tile_m in [*chosen, *((m, block) for block in blocks for m in {1, block + 1, 2 * block - 1} if m <= 48)]:
        y = np.full((48, tiled.padded_n), np.nan, np.float32)
        run(matmul_mad.bind(tiled, x, y, state(m), epilogue="store", tile_m=tile_m, isa=isa), m)
        assert y[:m, :33].tobytes() == want[:m].tobytes(), (m, tile_m)
        assert np.isnan(y[m:]).all(), (m, tile_m)


def test_the_interpreter_sees_no_row_read_or_written_beyond_the_buffers():
    """Blocks of 7 and 9 rows over buffers of 16, and their shorter last ones."""
    w = random_weight(catalog.find("planes4-g32"), 33, 64)
    x = random_activations(w, 16, 16)
    for m, tile_m in ((13, 7), (16, 9), (10, 9), (9, 8)):
        y = aligned((16, 64), np.float32)
        step = matmul_mad.bind(tile_mad(w), x, y, state(m), epilogue="store", tile_m=tile_m)
        step.launch.kernel.check(step.launch.args, step.count(m), **step.launch.static)


OTHERS = ["planes2-g64-mins-token", "planes1-g16-zeros", "planes4-g16", "planes5-g16-mins", "planes7-g16-zeros",
          "int8-g16-f32", "int8-g64-f32-token"]  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_combinations_of_axes(name):
    check(catalog.find(name), SIZES, 1, ISAS[0])


IN_PLACE = Plan(2, 4, 1, 1024, 4096, in_place=True)


PLANS = [
    Plan(1, 1, 1, 0), Plan(2, 1, 2, 4096), Plan(1, 4, 4, 0), Plan(2, 2, 3, 64), Plan(1, 16, 2, 0, 64, True), IN_PLACE,
    Plan(1, 2, 2, 64, lanes=8), Plan(2, 4, 1, 0, 64, in_place=True, lanes=8),
]  # fmt: skip


@pytest.mark.parametrize("plan, name", [
    *((plan, "ternary") for plan in PLANS),
    *zip(PLANS, cycle(["planes3-g128-zeros", "planes4-g256", "planes1x3-g128-mins", "iq4nl-g32-i8xf16"])),
])  # fmt: skip
def test_a_plan_changes_no_bit(name, plan):
    for m, n, k in SIZES[3:]:
        got, want = multiply(random_weight(catalog.find(name), n, k), m, 4, shape=plan)
        assert got.tobytes() == want.tobytes()


ONE_FIELD = ["planes1-g32-mins", "ternary", "planes4-g128-zeros", "int8-g32"]
ELSEWHERE = ["planes3-g64-mins", "planes5-g32", "planes2-g16-mins-f32", "planes1-g16-zeros", "planes4-g16"]


@pytest.mark.parametrize("name, isa", [*product(ONE_FIELD, ISAS), *zip(ELSEWHERE, cycle(ISAS))])
def test_codes_taken_in_place(name, isa):
    """Masked but not shifted, they are up to 240, more than some instructions hold twice in 16 bits."""
    for m, n, k in SIZES[2:4]:
        got, want = multiply(random_weight(catalog.find(name), n, k), m, 1, isa, shape=IN_PLACE)
        assert got.tobytes() == want.tobytes()


def test_an_operand_in_place_by_hand():
    """Weights 8 to 11 of a word of 2 bits: 3 2 1 0 in the third fields, so 48 32 16 0, 2**4 times too large."""

    @kernel
    def take(source: Pointer[u32], out: Pointer[u8], task: i64):
        codes = quad_in_place([load(source, 0, 1)], 2, 2)
        assert shift_in_place(2, 2) == 4
        store(out, 0, codes)

    others, out = 0xC3C3C3C3, np.zeros(4, np.uint8)
    word = np.array([others | 3 << 4 | 2 << 12 | 1 << 20 | 0 << 28], np.uint32)
    take.run({"source": word, "out": out}, 1)
    assert out.tolist() == [48, 32, 16, 0]
    assert [bits for bits in range(1, 9) if has_one_field(bits)] == [1, 2, 4, 8]


@pytest.mark.parametrize("name", [*ONE_PER_WIDTH, "planes3-g16-f32"])
def test_the_interpreter_agrees_and_stays_inside_the_buffers(name):
    w = random_weight(catalog.find(name), 33, 64)
    x, y = random_activations(w, 2, 2), aligned((2, 64), np.float32)
    step = matmul_mad.bind(tile_mad(w), x, y, state(2), epilogue="store", tile_m=2)
    step.launch.kernel.check(step.launch.args, step.count(2), **step.launch.static)


def test_bias_and_residual_and_column():
    w, m = random_weight(catalog.find("planes4-g32"), 40, 64), 3
    x, tiled = random_activations(w, m, 4), tile_mad(w)
    bias, y = aligned(tiled.padded_n, np.float32), aligned((4, 128), np.float32)
    bias[:40], y[:] = np.arange(40), 0.25
    run(matmul_mad.bind(tiled, x, y, state(m), epilogue="add", bias=bias, column=64, tile_m=4), m)
    out = integer.matmul(x.xq[:m], x.xs[:m], w) + bias[:40]
    assert np.array_equal(y[:m, 64:104], np.float32(0.25) + out)
    assert (y[:m, :64] == 0.25).all() and (y[:m, 104:] == 0.25).all()


@pytest.mark.parametrize("epilogue, gate_spec", [("silu", silu_spec), ("relu2", relu2_spec)])
@pytest.mark.parametrize("isa", ISAS)
def test_gate_times_up(epilogue, gate_spec, isa):
    form = catalog.find("planes2-row")
    gate, up, m = random_weight(form, 40, 64), random_weight(form, 40, 64, seed=5), 3
    tiled = tile_mad(interleave_rows(gate, up))
    x, y = random_activations(gate, m, 4), aligned((4, 64), np.float32)
    x.xs[:] *= np.float32(1e-3)
    run(matmul_mad.bind(tiled, x, y, state(m), epilogue=epilogue, tile_m=2, isa=isa), m)
    parts = [integer.matmul(x.xq[:m], x.xs[:m], w) for w in (gate, up)]
    assert np.array_equal(y[:m, :40], gate_spec(parts[0]) * parts[1])
    assert not y[:m, 40:].any()


def test_tasks_beyond_the_weight_do_nothing():
    w = random_weight(catalog.find("ternary"), 32, 32)
    x, y = random_activations(w, 1, 1), aligned((1, 64), np.float32)
    step = matmul_mad.bind(tile_mad(w), x, y, state(1), epilogue="store", tile_m=1)
    step.launch.run(1, 9)
    assert not y.any()


def test_errors():
    w = random_weight(catalog.find("ternary"), 40, 64)
    x, y = random_activations(w, 4, 4), aligned((4, 64), np.float32)
    fitting = dict(weight=tile_mad(w), x=x, y=y, state=state(4), epilogue="store", tile_m=4)

    def bind(**changed):
        return matmul_mad.bind(**{**fitting, **changed})

    with pytest.raises(KernelError, match="expected an epilogue of store, add, silu, relu2, got 'gelu'"):
        bind(epilogue="gelu")
    with pytest.raises(KernelError, match="a multiple of 4 rows and at least 64 columns, got .2, 64."):
        bind(y=y[:2])
    with pytest.raises(KernelError, match="at least 72 columns"):
        bind(column=8)
    with pytest.raises(KernelError, match="expected a bias of 64 numbers, got .40,."):
        bind(bias=np.zeros(40, np.float32))
    with pytest.raises(KernelError, match="a multiple of 4 rows with xq .4, 64., .*, got xq .4, 96."):
        bind(x=allocate(4, 96, w.format))
    with pytest.raises(KernelError, match="expected a state of 4 numbers, got 1"):
        bind(state=state(4)[:1])


def test_activations_of_another_format_are_refused():
    """Their columns agree, their groups do not: the kernel would read scales and sums behind the last row."""
    w = random_weight(catalog.planes(4, 32), 32, 128)
    for other in (catalog.planes(4, 64), catalog.planes(4, 32, activation_group=0)):
        with pytest.raises(KernelError, match="xs .4, 4., sums .4, 4., got xq .4, 128."):
            matmul_mad.bind(tile_mad(w), allocate(4, 128, other), aligned((4, 64), np.float32), state(4),
                            epilogue="store", tile_m=4)  # fmt: skip


def test_a_weight_in_another_order_is_an_error():
    w = random_weight(catalog.planes(2, 32), 4, 32)
    with pytest.raises(KernelError, match="expected a weight in mad order, got dense"):
        matmul_mad.bind(tile_dense(np.ones((4, 32), np.float32)), allocate(2, 32, w.format),
                        aligned((2, 32), np.float32), state(2), epilogue="store", tile_m=2)  # fmt: skip
