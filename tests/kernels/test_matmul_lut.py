"""Table lookup equals formats/integer.py exactly, whatever the format, the instruction set and the sizes."""

import re
from itertools import product

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.errors import FormatError, KernelError
from lutra.formats import catalog, integer
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.kernels import matmul_lut
from lutra.kernels.activations import Activations, allocate
from lutra.kernels.buffers import aligned
from lutra.kernels.elementwise import relu2_spec, silu_spec
from lutra.kernels.tiles import TiledWeight, interleave_rows, tile_mad
from lutra.kernels.tiles_lut import split_tables, tile_lut
from tests.formats.parts import random_beside
from tests.formats.parts import random_codes as random_codes_of

ISAS = [target.isa for target in targets.available()]
FAST_ISAS = [isa for isa in ISAS if isa != "portable"]  # a portable lookup is long code and slow to compile
NATIVE = ISAS[0]
ROWS = 8  # of the buffers; a multiple of every tile_m below


def random_weight(format: Format, n: int, k: int, seed: int = 0) -> QTensor:
    rng = np.random.default_rng(seed)
    return QTensor.from_codes(format, random_codes_of(format, n, k, rng), **random_beside(format, n, k, rng))


def random_codes(m: int, k: int, seed: int = 1) -> np.ndarray:
    """int8 [M, K], half of them at the ends of the range."""
    rng = np.random.default_rng(seed)
    ends = rng.choice(np.array([-127, 127], np.int8), (m, k))
    return np.where(rng.random((m, k)) < 0.5, ends, rng.integers(-127, 128, (m, k))).astype(np.int8)


def activations(xq: np.ndarray, w: QTensor, seed: int = 2) -> Activations:
    """The buffers of int8 rows [M, K], with random scales; rows behind M hold rubbish, as in a real step."""
    format, (m, k) = w.format, xq.shape
    x = allocate(ROWS, k, format, with_tables=True)
    assert x.tables is not None
    x.xq[:] = random_codes(ROWS, x.xq.shape[1], seed)
    x.xq[:m, :k], x.xq[:m, k:] = xq, 0
    x.xs[:] = np.random.default_rng(seed).random(x.xs.shape, np.float32)
    x.sums[:] = integer.activation_sums(x.xq, format.group_size)
    x.tables[:] = split_tables(integer.build_tables(x.xq))
    return x


def state(m: int) -> np.ndarray:
    return np.array([m, 0, 0, m], np.int64)


def run(weight: TiledWeight, x: Activations, m: int, y: np.ndarray, **options) -> np.ndarray:
    step = matmul_lut.bind(weight, x, y, state(m), **{"epilogue": "store", "tile_m": 1, **options})
    step.launch.run(0, step.count(m))
    return y


def check(format: Format, m: int, n: int, k: int, tile_m: int = 1, isa: str = NATIVE) -> None:
    w = random_weight(format, n, k, seed=n + k)
    x = activations(random_codes(m, k), w)
    y = run(tile_lut(w), x, m, np.full((ROWS, -(-n // 64) * 64), np.nan, np.float32), tile_m=tile_m, isa=isa)
    want = integer.matmul(x.xq[:m], x.xs[:m], w)
    assert y[:m, :n].tobytes() == want.tobytes(), (format.name, m, n, k, tile_m, isa)
    padded_n = -(-n // 32) * 32
    assert not y[:m, n:padded_n].any() and np.isnan(y[:, padded_n:]).all()


def test_by_hand():
    """x = 1 2 3 4, codes 1 0 1 1 of one bit: 1 + 3 + 4 = 8, scaled by 0.5."""
    codes, scales = np.array([[1, 0, 1, 1]], np.uint8), np.array([[0.5]], np.float16)
    w = QTensor.from_codes(catalog.planes(1, 32, zero=0), codes, scales)
    x = activations(np.array([[1, 2, 3, 4]], np.int8), w)
    x.xs[:] = 1
    y = run(tile_lut(w), x, 1, np.zeros((ROWS, 64), np.float32))
    assert y[0, 0] == 4.0 and not y[0, 1:].any()


def test_the_halves_of_a_table_by_hand():
    """-512 -> 0, 0 -> 512 = 16 * 32, 511 -> 1023 = 31 * 32 + 31."""
    halves = split_tables(np.array([[-512, 0, 511, 6]], np.int16))
    assert halves.tolist() == [[[0, 0, 31, 6], [0, 16, 31, 16]]]


FORMATS = [
    catalog.ternary(),
    catalog.ternary(128),
    catalog.planes(1, 0),
    catalog.planes(1, 128, offset="mins"),
    catalog.planes(2, 16, offset="mins", scale_dtype="f32"),
    catalog.planes(2, 32),
    catalog.planes(2, 128, offset="zeros"),
    catalog.planes(3, 64, offset="mins"),
    catalog.planes(3, 0, scale_dtype="f16"),
    catalog.planes(4, 32, activation_group=0),
    catalog.planes(4, 128, offset="zeros", activation_group=0),
    catalog.planes(4, 0),
    catalog.planes(1, 64, terms=3, offset="mins"),
    catalog.planes(1, 0, terms=4),
    catalog.ternary(128, terms=2),
    catalog.ternary(32, offset="mins", scale_dtype="i8", super_dtype="f32"),
    catalog.planes(2, 16, offset="mins", scale_dtype="u8", super_dtype="f16"),
    catalog.planes(4, 16, scale_dtype="e4m3", super_dtype="f32", super_group=0),
    catalog.planes(3, 128, scale_dtype="bf16"),
    catalog.planes(4, 32, offset="zeros", scale_dtype="e8m0"),
]


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_every_format(format):
    check(format, 2, 70, 260)


@pytest.mark.parametrize("isa", FAST_ISAS)
def test_terms_on_every_isa(isa):
    check(catalog.planes(1, 64, terms=3, offset="mins"), 3, 70, 260, tile_m=2, isa=isa)


BITS_OF_ISA = [*product([1, 2, 3, 4], FAST_ISAS), (1, "portable"), (3, "portable")]


@pytest.mark.parametrize("bits, isa", BITS_OF_ISA)
def test_every_isa(bits, isa):
    check(catalog.planes(bits, 32), 2, 70, 260, 1, isa)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (63, 31), (64, 32), (65, 33), (127, 97), (128, 128), (193, 509)])
def test_sizes_around_the_tile(bits, n, k):
    check(catalog.planes(bits, 32), 1, n, k)
    check(catalog.planes(bits, 64), 3, n, k)


@pytest.mark.parametrize(
    ("isa", "tile_m", "bits"),
    [(isa, 1, bits) for isa in ISAS for bits in (1, 3)]
    + [(isa, 2, 1) for isa in FAST_ISAS]
    + [(isa, tile_m, 2) for isa in FAST_ISAS for tile_m in (2, 4)],
)
def test_rows_of_activations(bits, tile_m, isa):
    for m in (1, 2, 3, 7, 8):
        check(catalog.planes(bits, 32), m, 65, 96, tile_m, isa)


@pytest.mark.parametrize("bits, isa", BITS_OF_ISA)
@pytest.mark.parametrize("top", [False, True])
def test_extreme_sums(bits, top, isa):
    """All codes and all activations at an end: the largest and the smallest table entries, in every lookup of a row."""
    format = catalog.planes(bits, 0, scale_dtype="f16") if isa in FAST_ISAS else catalog.planes(bits, 32)
    k = format.group_size or 65536
    codes = np.full((64, k), (2**bits - 1) * top, np.uint8)
    w = QTensor.from_codes(format, codes, np.ones((64, 1), np.float16))
    for sign in (-127, 127):
        x = activations(np.full((1, k), sign, np.int8), w)
        x.xs[:] = 1
        y = run(tile_lut(w), x, 1, np.zeros((ROWS, 64), np.float32), isa=isa)
        assert (y[0] == np.float32(sign * (int(codes[0, 0]) - format.zero) * k)).all()


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_interpreter_agrees_and_stays_inside_its_buffers(bits):
    w = random_weight(catalog.planes(bits, 32, offset="mins"), 40, 64)
    x = activations(random_codes(2, 64), w)
    y = np.zeros((ROWS, 64), np.float32)
    step = matmul_lut.bind(tile_lut(w), x, y, state(2), epilogue="store", tile_m=2)
    static = {"format": w.format, "epilogue": "store", "has_bias": False, "tile_m": 2, "vectors_at_once": 2}
    matmul_lut.matmul_lut.interpret(step.launch.args, step.count(2), **static)
    assert y[:2, :40].tobytes() == integer.matmul(x.xq[:2], x.xs[:2], w).tobytes()


@pytest.mark.parametrize("epilogue", ["store", "add", "silu", "relu2"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_epilogues(epilogue, with_bias):
    format, n, k, m = catalog.planes(2, 64), 50, 128, 3
    gate, up = random_weight(format, n, k, 5), random_weight(format, n, k, 6)
    gated = epilogue in ("silu", "relu2")
    weight = tile_lut(interleave_rows(gate, up) if gated else gate)
    x = activations(random_codes(m, k), gate)
    outs = [integer.matmul(x.xq[:m], x.xs[:m], w) for w in (gate, up)]
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
    run(weight, x, m, y, epilogue=epilogue, bias=bias, tile_m=2)
    assert y[:m, :n].tobytes() == want.astype(np.float32).tobytes()


@pytest.mark.parametrize("isa", FAST_ISAS)
def test_work_is_linear_in_bits(isa):
    """T-MAC's law: each bit costs the same number of vector instructions in the inner loop; the rest is small."""
    counts = []
    for bits in (1, 2, 3, 4):
        w = random_weight(catalog.planes(bits, 0), 64, 64)
        x, y = activations(random_codes(1, 64), w), aligned((ROWS, 64), np.float32)
        step = matmul_lut.bind(tile_lut(w), x, y, state(1), epilogue="store", tile_m=1, isa=isa)
        counts.append(inner_loop_count(step.launch.compiled.text("asm")))
    slope, fixed = np.polyfit((1, 2, 3, 4), counts, 1)
    law = fixed + slope * np.arange(1, 5)
    assert np.corrcoef(law, counts)[0, 1] ** 2 >= 0.98
    assert abs(counts - law).max() <= 0.1 * law[0] + 0.05 * law[3] and 0 < fixed < slope, counts


def inner_loop_count(asm: str) -> int:
    """Vector instructions of the loop with most byte lookups."""
    blocks = re.split(r"^\.LBB\S+:", asm, flags=re.M)
    loop = max(blocks, key=lambda block: block.count("vpshufb"))
    assert loop.count("vpshufb") and not re.search(r"vpunpck", loop)
    return len(re.findall(r"^\s+v[pbm]", loop, flags=re.M))


def test_outputs_may_start_at_a_column():
    w = random_weight(catalog.planes(2, 32), 40, 64)
    x = activations(random_codes(1, 64), w)
    y = run(tile_lut(w), x, 1, np.full((ROWS, 128), 7, np.float32), column=32)
    assert y[0, 32:72].tobytes() == integer.matmul(x.xq[:1], x.xs[:1], w).tobytes()
    assert (y[0, :32] == 7).all() and (y[0, 96:] == 7).all() and (y[1:] == 7).all()


def test_what_does_not_fit_is_refused():
    w = random_weight(catalog.planes(2, 32), 64, 64)
    x = activations(random_codes(1, 64), w)
    y = aligned((ROWS, 64), np.float32)

    def bind(weight=None, x=x, epilogue="store", tile_m=1, **options):
        matmul_lut.bind(weight or tile_lut(w), x, y, state(1), epilogue=epilogue, tile_m=tile_m, **options)

    for wide in (catalog.int8(32), catalog.planes(5, 32)):
        with pytest.raises(FormatError, match=f"expected 1 to 4 bit planes for table lookup, got {wide.name}; use mad"):
            tile_lut(random_weight(wide, 4, 32))
    with pytest.raises(KernelError, match="expected a weight in lut order, got mad"):
        bind(tile_mad(w))
    with pytest.raises(KernelError, match="tables .8, 16, 2, 16., .*, got xs .*with_tables=True"):
        bind(x=allocate(ROWS, 64, w.format))
    with pytest.raises(KernelError, match="tables .8, 16, 2, 16., .*, got tables .8, 24, 2, 16."):
        bind(x=allocate(ROWS, 96, w.format, with_tables=True))
    with pytest.raises(KernelError, match="expected an epilogue"):
        bind(epilogue="gelu")
    with pytest.raises(KernelError, match="multiple of 3 rows"):
        bind(tile_m=3)
    with pytest.raises(KernelError, match="expected a bias of 64"):
        bind(bias=np.zeros(3, np.float32))
