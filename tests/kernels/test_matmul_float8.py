"""8-bit floats: every code is worth what ml_dtypes says, and products are those of the weight multiplied out."""

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.compiler.kernel import kernel
from lutra.compiler.language import Pointer, f32, i64, load, store, u8
from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.formats.qtensor import QTensor
from lutra.formats.reduce import dense_spec
from lutra.formats.tables import FLOATS, float_values
from lutra.kernels import choose, embed, matmul_dense
from lutra.kernels.buffers import aligned
from lutra.kernels.levels import float_unit, small_float
from lutra.kernels.stored import check
from tests.formats.parts import random_beside
from tests.kernels.linears import run, state

ISAS = [target.isa for target in targets.available()]
NAMES = [*catalog.FLOAT_FORMATS, "e5m2-g16", "e4m3-g256-bf16"]
SIZES = [(1, 1, 1), (2, 31, 32), (3, 33, 33), (7, 48, 97), (16, 67, 160), (1, 33, 257), (5, 20, 600)]


def random_floats(name: str, n: int, k: int) -> QTensor:
    """Every code there is, subnormals and both zeros too, and scales of both signs."""
    form, rng = catalog.find(name), np.random.default_rng(n + k)
    usable = np.flatnonzero(np.isfinite(float_values(form.levels))).astype(np.uint8)
    return QTensor.from_codes(form, rng.choice(usable, (n, k)), **random_beside(form, n, k, rng))


def random_inputs(rows: int, k: int) -> np.ndarray:
    x = aligned((rows, -(-k // 256) * 256), np.float32)
    x[:, :k] = np.random.default_rng(k).standard_normal((rows, k))
    return x


@kernel
def widen(codes: Pointer[u8], y: Pointer[f32], task: i64, *, name):
    store(y, task * 16, small_float(load(codes, task * 16, 16), name) * float_unit(name))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FLOATS)
def test_every_code_is_exact(name, isa):
    codes, y, want = aligned(256, np.uint8), aligned(256, np.float32), float_values(name)
    codes[:] = np.arange(256)
    widen.bind({"codes": codes, "y": y}, isa, name=name).run(0, 16)
    numbers = np.isfinite(want)
    assert numbers.sum() == {"e4m3": 254, "e5m2": 248}[name]
    assert y[numbers].tobytes() == want[numbers].tobytes()


def test_by_hand():
    """448 * 0.5 + (2**-9) * 0.5 * 512 - 1.5 * 0.5 * 2 = 224 + 0.5 - 1.5."""
    codes = np.array([[0x7E, 0x01, 0xBC]], np.uint8)
    w = QTensor.from_codes(catalog.table("e4m3", 0), codes, np.full((1, 1), 0.5, "f4"))
    x, y = aligned((1, 256), np.float32), aligned((1, 32), np.float32)
    x[0, :3] = [1, 512, 2]
    run(matmul_dense.bind(choose.tile(w), x, y, state(1), epilogue="store", tile_m=1), 1)
    assert y[0].tolist() == [223.0] + [0.0] * 31


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_product_with_the_weight_multiplied_out(name, isa):
    for m, n, k in SIZES:
        w = random_floats(name, n, k)
        tiled, values = choose.tile(w), w.dequantize()
        check(tiled)
        levels = w.codes().view(FLOATS[w.format.levels]).astype("f4")
        assert values.tobytes() == (levels * w._spread(w.scale_values())).tobytes()
        for tile_m in choose.row_blocks("dense", isa):
            x = random_inputs(-(-m // tile_m) * tile_m, k)
            y = np.full((len(x), tiled.padded_n), np.nan, np.float32)
            run(matmul_dense.bind(tiled, x, y, state(m), epilogue="store", tile_m=tile_m, isa=isa), m)
            assert y[:m, :n].tobytes() == dense_spec(x[:m, :k], values).tobytes(), (m, n, k, tile_m)
            assert not y[:m, n:].any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_table(name, isa):
    w = random_floats(name, 50, 97)
    x, tokens = aligned((3, 128), np.float32), np.array([0, 33, 49])
    run(embed.bind(choose.tile(w), tokens, x, isa=isa), 3)
    assert x[:, :97].tobytes() == w.dequantize()[tokens].tobytes()


def test_the_interpreter_agrees_and_stays_inside_the_buffers():
    w = choose.tile(random_floats("e4m3-g32-e8m0", 33, 33))
    x, y = random_inputs(2, 33), aligned((2, 64), np.float32)
    step = matmul_dense.bind(w, x, y, state(2), epilogue="store", tile_m=2)
    step.launch.kernel.check(step.launch.args, step.count(2), **step.launch.static)


@pytest.mark.parametrize(
    ("name", "code"), [("e4m3-row", 0x7F), ("e4m3-row", 0xFF), ("e5m2-row", 0x7C), ("e5m2-row", 0xFE)]
)
def test_codes_that_are_no_numbers_are_refused(name, code):
    with pytest.raises(FormatError, match="expected codes of numbers, got inf or nan"):
        QTensor.from_codes(catalog.find(name), np.array([[code]], np.uint8), np.ones((1, 1), np.float32))


def test_scales_whose_products_are_no_numbers_are_refused():
    form, codes = catalog.table("e4m3", 0), np.zeros((1, 1), np.uint8)
    assert np.isfinite(QTensor.from_codes(form, codes + np.uint8(0x7E), np.full((1, 1), 7e35, "f4")).dequantize()).all()
    with pytest.raises(FormatError, match="expected finite products with e4m3, got up to 8e.35"):
        QTensor.from_codes(form, codes, np.full((1, 1), 8e35, np.float32))
