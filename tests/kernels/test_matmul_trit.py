"""Looking five trits up at once, and taking them apart for several rows, equal formats/integer.py exactly."""

import itertools

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.errors import FormatError, KernelError
from lutra.formats import catalog, integer, trits
from lutra.formats.qtensor import QTensor
from lutra.kernels import choose, embed, matmul_trit, matmul_trit_rows, plan, trit_places, trit_tables
from lutra.kernels.activations import Activations, allocate
from lutra.kernels.buffers import aligned
from lutra.kernels.elementwise import relu2_spec, silu_spec
from lutra.kernels.matmul_trit_tiles import matmul_trit_tiles
from lutra.kernels.tiles import TiledWeight, interleave_rows, tile_mad
from lutra.kernels.tiles_trit import HIGH, LARGEST, tile_trit
from lutra.kernels.trit_tables import part_places
from tests.cover import pairs
from tests.kernels.linears import random_weight, run, state

ISAS = [target.isa for target in targets.available()]
NATIVE = ISAS[0]
BLOCKS = choose.row_blocks("trit5", NATIVE)
ROWS = 48  # of the buffers; a multiple of every tile_m below
TERNARY = catalog.ternary()


def random_codes(m: int, k: int, seed: int = 1) -> np.ndarray:
    """int8 [M, K], half of them at the ends of the range."""
    rng = np.random.default_rng(seed)
    ends = rng.choice(np.array([-127, 127], np.int8), (m, k))
    return np.where(rng.random((m, k)) < 0.5, ends, rng.integers(-127, 128, (m, k))).astype(np.int8)


def activations(xq: np.ndarray, tile_m: int = 1, isa: str = NATIVE) -> Activations:
    """Int8 rows [M, K] with random scales, as a kernel of tile_m reads them; rows behind M hold rubbish."""
    m, k = xq.shape
    x = allocate(ROWS, k, TERNARY, with_trits=True)
    x.xq[:] = random_codes(ROWS, x.xq.shape[1], 2)
    x.xq[:m, :k], x.xq[:m, k:] = xq, 0
    x.xs[:] = np.random.default_rng(3).random(x.xs.shape, np.float32)
    x.sums[:] = integer.activation_sums(x.xq, TERNARY.group_size)
    for step in matmul_trit.bind_inputs(x, state(m), [tile_m], isa=isa):
        run(step, m)
    return x


def multiply(weight: TiledWeight, x: Activations, m: int, y: np.ndarray, **options) -> np.ndarray:
    run(matmul_trit.bind(weight, x, y, state(m), **{"epilogue": "store", "tile_m": 1, **options}), m)
    return y


def check(m: int, n: int, k: int, tile_m: int = 1, isa: str = NATIVE) -> None:
    w = random_weight(TERNARY, n, k, seed=n + k)
    x = activations(random_codes(m, k), tile_m, isa)
    padded_n = -(-n // 32) * 32
    y = multiply(tile_trit(w), x, m, np.full((ROWS, padded_n + 32), np.nan, np.float32), tile_m=tile_m, isa=isa)
    assert y[:m, :n].tobytes() == integer.matmul(x.xq[:m, :k], x.xs[:m], w).tobytes(), (m, n, k, tile_m, isa)
    assert not y[:m, n:padded_n].any() and np.isnan(y[:, padded_n:]).all()


def test_by_hand():
    """x = 1 2 3 4 5, weights + - 0 + -: 1 - 2 + 4 - 5 = -2, scaled by 0.5; then all of them negated."""
    codes = np.array([[2, 0, 1, 2, 0], [0, 2, 1, 0, 2]], np.uint8)
    w = QTensor.from_codes(TERNARY, codes, np.array([[0.5], [0.5]], np.float32))
    x = activations(np.array([[1, 2, 3, 4, 5]], np.int8))
    x.xs[:] = 1
    assert tile_trit(w).codes[:8].tolist() == [56 | 0x80, 0, 0, 0, 56, 0, 0, 0]  # lane 0 is row 0, lane 1 row 1
    y = multiply(tile_trit(w), x, 1, np.zeros((ROWS, 64), np.float32))
    assert y[0, :2].tolist() == [-1.0, 1.0] and not y[0, 2:].any()


@pytest.mark.parametrize("isa", ISAS)
def test_tables(isa):
    """The bytes make the sums of formats/trits.py, and stay in the bounds that let five be added."""
    corners = np.array(list(itertools.product((-127, 0, 127), repeat=5)), np.int8).reshape(3, -1)
    for xq in (corners, random_codes(3, 64), random_codes(2, 1)):
        x = activations(xq)
        assert x.trits is not None
        x.trits[:] = 0
        run(trit_tables.bind(x, state(len(xq)), isa=isa), len(xq))
        parts = x.trits
        places = np.array([[part_places(v, half) for v in range(trits.ENTRIES)] for half in range(2)])  # [2, 122, 2]
        low, high = np.moveaxis(parts[: len(xq)][..., places].sum(-1, dtype=np.int16), 2, 0)
        assert max(np.abs(low).max(), np.abs(high).max()) <= LARGEST
        np.testing.assert_array_equal(low + HIGH * high, trits.build_trit_tables(xq))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("k", [1, 20, 61, 64, 100])
def test_places(k, isa):
    """Those of four steps side by side: by hand, activation 0 5 10 15, then 1 6 11 16; and every other group so."""
    x = activations(random_codes(3, k))
    assert x.places is not None
    run(trit_places.bind(x, state(3), isa=isa), 3)
    groups = -(-k // 20)
    assert np.array_equal(x.places[:3, :8], x.xq[:3, [0, 5, 10, 15, 1, 6, 11, 16]])
    want = x.xq[:3, : 20 * groups].reshape(3, groups, 4, 5).swapaxes(2, 3)
    assert np.array_equal(x.places[:3, : 20 * groups].reshape(want.shape), want)


def test_fields_by_hand():
    """Magnitude 1 is + 0 0 0: codes 2 1 1 1, low field first; 41 is the least with a fifth trit: - - - - +."""
    fields = matmul_trit_rows.code_fields()
    assert [bin(fields[v]) for v in (0, 1)] == ["0b1010101", "0b1010110"] and fields[41] == 0
    assert trits.unpack_trits(np.array([[40], [41]], np.uint8), 5)[:, 4].tolist() == [0, 1]


@pytest.mark.parametrize("tiles, fields, isa", pairs([1, 2, 4], [1, 2, 4], ISAS))
def test_every_plan_gives_the_same_sums(tiles, fields, isa, monkeypatch):
    """Two rows of activations, every number of quarters at once and of fields summed apart."""
    shape = plan.Plan(tiles, fields, unroll=1, prefetch_bytes=0, second_bytes=4096)
    monkeypatch.setattr(matmul_trit, "plan_for", lambda *_: shape)
    check(3, 97, 103, tile_m=2, isa=isa)


@pytest.mark.parametrize(
    ("n", "k"), [(1, 1), (31, 4), (32, 5), (33, 6), (64, 24), (65, 25), (127, 26), (128, 32), (129, 33), (257, 509)]
)
def test_sizes_around_the_tile(n, k):
    for tile_m in BLOCKS:
        check(1, n, k, tile_m)
        check(3, n, k, tile_m)


@pytest.mark.parametrize(
    ("isa", "tile_m"),
    [*((NATIVE, tile_m) for tile_m in BLOCKS), *((isa, choose.row_blocks("trit5", isa)[-1]) for isa in ISAS[1:])],
)
def test_rows_of_activations(tile_m, isa):
    for m in (1, 2, 3, 7, 8, 16, 33):
        check(m, 71, 67, tile_m, isa)


@pytest.mark.parametrize("code, tile_m, isa", pairs([0, 1, 2], [1, 2], ISAS))
def test_extreme_sums(code, tile_m, isa):
    """All weights and all activations at an end, in the longest row."""
    k = 65536
    w = QTensor.from_codes(TERNARY, np.full((1, k), code, np.uint8), np.ones((1, 1), np.float32))
    for sign in (-127, 127):
        x = activations(np.full((1, k), sign, np.int8), tile_m, isa)
        x.xs[:] = 1
        y = multiply(tile_trit(w), x, 1, np.zeros((ROWS, 32), np.float32), tile_m=tile_m, isa=isa)
        assert y[0, 0] == np.float32(sign * (code - 1) * k)


@pytest.mark.parametrize("tile_m", [1, 2])
def test_the_interpreter_agrees_and_stays_inside_its_buffers(tile_m):
    w = random_weight(TERNARY, 140, 64)
    x = activations(random_codes(2, 64), tile_m)
    array = x.trits if matmul_trit.looks_up(tile_m) else x.places
    assert array is not None
    native = array.copy()
    array[:2] = 0
    for step in matmul_trit.bind_inputs(x, state(2), [tile_m]):
        step.launch.interpret(step.count(2))
    assert native.any() and np.array_equal(array, native)
    y = np.zeros((ROWS, 160), np.float32)
    step = matmul_trit.bind(tile_trit(w), x, y, state(2), epilogue="store", tile_m=tile_m)
    step.launch.interpret(step.count(2))
    assert y[:2, :140].tobytes() == integer.matmul(x.xq[:2, :64], x.xs[:2], w).tobytes()


@pytest.mark.parametrize("m, n, k, tile_m", [(3, 70, 7, 8), (21, 33, 64, 20), (33, 64, 123, 32), (17, 31, 100, 16)])
def test_tiles_mean_the_same(m, n, k, tile_m):
    """Interpreted, so on every CPU: less than a tile along K, a last step that begins early, a last block too."""
    w, x = random_weight(TERNARY, n, k, seed=k), activations(random_codes(m, k), 2)
    y = np.full((ROWS, -(-n // 32) * 32), np.nan, np.float32)
    step = matmul_trit.bind(tile_trit(w), x, y, state(m), epilogue="store", tile_m=2, isa="portable")
    static = dict(format=TERNARY, epilogue="store", has_bias=False, tile_m=tile_m)
    matmul_trit_tiles.interpret(step.launch.args, -(-n // 64) * -(-m // tile_m), **static)
    assert y[:m, :n].tobytes() == integer.matmul(x.xq[:m, :k], x.xs[:m], w).tobytes() and np.isnan(y[m:]).all()


def test_inputs_for_blocks_of_different_sizes():
    """Both forms where both are read, one of each."""
    x = activations(random_codes(1, 64))

    def names(blocks):
        return [step.launch.kernel.name for step in matmul_trit.bind_inputs(x, state(1), blocks)]

    assert names([2, 4]) == ["trit_places"]
    assert names([1, 2, 1]) == (["trit_places", "trit_tables"] if matmul_trit.looks_up(1) else ["trit_places"])


@pytest.mark.parametrize("epilogue", ["store", "add", "silu", "relu2"])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("tile_m", [1, 2])
def test_epilogues(tile_m, epilogue, with_bias):
    n, k, m = 50, 128, 3
    gate, up = random_weight(TERNARY, n, k, 5), random_weight(TERNARY, n, k, 6)
    gated = epilogue in ("silu", "relu2")
    weight = tile_trit(interleave_rows(gate, up) if gated else gate)
    x = activations(random_codes(m, k), tile_m)
    outs = [integer.matmul(x.xq[:m, :k], x.xs[:m], w) for w in (gate, up)]
    bias = None
    if with_bias:
        each = [np.linspace(-1, 1, n, dtype=np.float32), np.linspace(3, 2, n, dtype=np.float32)]
        outs = [out + one for out, one in zip(outs, each, strict=True)]
        row = interleave_rows(*each) if gated else each[0]
        bias = np.pad(row, (0, weight.padded_n - row.size))
    residual = np.linspace(-5, 5, ROWS * 64, dtype=np.float32).reshape(ROWS, 64)
    want = {
        "store": lambda: outs[0],
        "add": lambda: residual[:m, :n] + outs[0],
        "silu": lambda: silu_spec(outs[0]) * outs[1],
        "relu2": lambda: relu2_spec(outs[0]) * outs[1],
    }[epilogue]()
    y = aligned((ROWS, 64), np.float32)
    y[:] = residual
    multiply(weight, x, m, y, epilogue=epilogue, bias=bias, tile_m=tile_m)
    assert y[:m, :n].tobytes() == want.astype(np.float32).tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (130, 33), (128, 64), (300, 99)])
def test_embedding_rows(n, k, isa):
    w = random_weight(TERNARY, n, k)
    tokens = np.array([0, n - 1, n // 2], np.int64)
    x = np.full((3, 128), np.nan, np.float32)
    run(embed.bind(tile_trit(w), tokens, x, isa=isa), 3)
    assert x[:, :k].tobytes() == w.dequantize()[tokens].tobytes() and np.isnan(x[:, k:]).all()


def test_one_byte_for_five_weights():
    tiled = tile_trit(random_weight(TERNARY, 256, 1000))
    assert tiled.codes.size * 8 == 1.6 * 256 * 1000 and tiled.num_bytes == tiled.codes.size + 256 * 4


def test_what_does_not_fit_is_refused():
    w = random_weight(TERNARY, 64, 64)
    x, y = activations(random_codes(1, 64)), aligned((ROWS, 64), np.float32)

    def bind(weight=None, x=x, tile_m=1, **options):
        matmul_trit.bind(weight or tile_trit(w), x, y, state(1), **{"epilogue": "store", "tile_m": tile_m, **options})

    for format in (catalog.ternary(128), catalog.planes(2, 0), catalog.int8(0)):
        with pytest.raises(FormatError, match="expected ternary weights with one scale per row"):
            tile_trit(random_weight(format, 4, 128))
    with pytest.raises(KernelError, match="expected a weight in trit5 order, got mad"):
        bind(tile_mad(w))
    with pytest.raises(KernelError, match="places .48, 96., .*, got xs .*with_trits=True"):
        bind(x=allocate(ROWS, 64, TERNARY), tile_m=2)
    with pytest.raises(KernelError, match="got places .48, 128."):
        bind(x=allocate(ROWS, 86, TERNARY, with_trits=True), tile_m=2)
    if matmul_trit.looks_up(1):
        with pytest.raises(KernelError, match="trits .48, 13, 64., .*, got xs .*with_trits=True"):
            bind(x=allocate(ROWS, 64, TERNARY))
        with pytest.raises(KernelError, match="got trits .48, 14, 64."):
            bind(x=allocate(ROWS, 66, TERNARY, with_trits=True))
    with pytest.raises(KernelError, match="expected activations with places and tables of five, got none"):
        trit_places.bind(allocate(ROWS, 64, TERNARY), state(1))
    with pytest.raises(KernelError, match="expected activations with places and tables of five, got none"):
        trit_tables.bind(allocate(ROWS, 64, TERNARY), state(1))
    with pytest.raises(KernelError, match="expected an epilogue"):
        bind(epilogue="gelu")
    with pytest.raises(KernelError, match="multiple of 5 rows"):
        bind(tile_m=5)
