"""lutra's kernels on emulated ARM CPUs: the same bits as on this computer, whose kernels equal the specification."""

import copy
from itertools import product

import numpy as np
import pytest

from lutra.compiler.launch import Step
from lutra.formats import catalog
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.kernels import (
    attention,
    cache,
    codes,
    embed,
    kv,
    matmul_dense,
    matmul_lut,
    matmul_mad,
    norm,
    rope,
)
from lutra.kernels.activations import Activations, allocate
from lutra.kernels.buffers import aligned
from lutra.kernels.plan import plan_for
from lutra.kernels.tiles import tile_dense, tile_mad
from lutra.kernels.tiles_lut import tile_lut
from lutra.quantize.methods import rtn
from tests.arm.emulator import ISAS, Emulator
from tests.cover import cover
from tests.formats.parts import random_beside, random_codes

ROWS, N, K = 5, 40, 160
HEADS, KV_HEADS, HEAD_DIM, CONTEXT = 4, 2, 20, 48


def check(emulator: Emulator, step: Step, rows: int, isa: str, **schedule) -> None:
    """Run a step here and emulated, on copies; every byte of every buffer must be the same.

    schedule   the kernel parameters that only change speed, as `isa` has them
    """
    launch, tasks = step.launch, step.count(rows)
    want, got = copy.deepcopy(launch.args), copy.deepcopy(launch.args)
    launch.kernel.run(want, tasks, **launch.static)
    emulator.run(launch.kernel, got, tasks, isa, **{**launch.static, **schedule})
    for name, value in want.items():
        if isinstance(value, np.ndarray):
            differs = np.flatnonzero(value.reshape(-1).view(np.uint8) != got[name].reshape(-1).view(np.uint8))
            assert not differs.size, f"{launch.kernel.name}: {name} differs from byte {differs[0]} on"
    changed = [
        name for name, value in launch.args.items() if isinstance(value, np.ndarray) and (value != want[name]).any()
    ]
    assert changed, f"{launch.kernel.name} wrote nothing"


def state(rows: int, position: int = 0) -> np.ndarray:
    return np.array([rows, position, 0, rows], np.int64)


def random_floats(*shape: int) -> np.ndarray:
    array = aligned(shape, np.float32)
    array[:] = np.random.default_rng(sum(shape)).standard_normal(shape)
    return array


def random_weight(format: Format) -> QTensor:
    rng = np.random.default_rng(format.bits)
    return QTensor.from_codes(format, random_codes(format, N, K, rng), **random_beside(format, N, K, rng))


def quantised(format: Format, with_tables: bool = False) -> tuple[Activations, Step]:
    """Activations filled by the native kernel, and the step that filled them."""
    x, out = aligned((8, 192), np.float32), allocate(8, K, format, with_tables)
    x[:, :K] = random_floats(8, K)
    step = norm.bind_quantize(x, out, state(8), width=K, weight=random_floats(K), eps=1e-5)
    step.launch.run(0, 8)
    return out, step


MAD_FORMATS = [
    catalog.planes(1, 0),
    catalog.ternary(),
    catalog.planes(2, 16, offset="mins"),
    catalog.planes(3, 64, offset="mins"),
    catalog.planes(4, 32, offset="zeros"),
    catalog.planes(6, 16, scale_dtype="f32"),
    catalog.planes(7, 64),
    catalog.int8(32),
    catalog.int8(0),
    catalog.planes(1, 64, terms=3, offset="mins"),
    catalog.ternary(32, offset="mins", scale_dtype="i8", super_dtype="f32"),
    catalog.planes(4, 32, offset="mins", scale_dtype="u8", super_dtype="f16"),
    catalog.table("iq4nl", 32, scale_dtype="bf16"),
    catalog.table("e2m1", 16, scale_dtype="e4m3", super_dtype="f32", super_group=0),
    catalog.table("e2m3", 32, scale_dtype="e8m0"),
]


def traits(case: tuple[Format, tuple[int, int], str]) -> set:
    """A format; what kernels are made of, and a block of rows, on an instruction set."""
    format, block, isa = case
    axes = {(axis, getattr(format, axis), isa) for axis in ("bits", "scale_kind", "terms")}
    return axes | {format, (block, format.offset, isa), (format.levels == "uniform", isa)}


@pytest.mark.parametrize(
    "format, block, isa",
    cover(product(MAD_FORMATS, [(1, 1), (ROWS, 4)], ISAS), traits),
    ids=lambda value: getattr(value, "name", None),
)
def test_multiply_add(emulator, format, block, isa):
    rows, tile_m = block
    y, bias = aligned((8, 64), np.float32), random_floats(64)
    weight = tile_mad(random_weight(format))
    step = matmul_mad.bind(weight, quantised(format)[0], y, state(rows), epilogue="store", bias=bias, tile_m=tile_m)
    check(emulator, step, rows, isa, plan=plan_for("mad", isa, tile_m))


@pytest.mark.parametrize("tile_m, rows", [(2, 3), (4, 5), (8, 7)])
@pytest.mark.parametrize("format", MAD_FORMATS, ids=lambda format: format.name)
def test_sums_in_squares(emulator, format, tile_m, rows):
    """The instruction for matrices: every format, and blocks that lack a row."""
    plan, y = plan_for("mad", "i8mm", tile_m), aligned((8, 64), np.float32)
    step = matmul_mad.bind(
        tile_mad(random_weight(format)), quantised(format)[0], y, state(rows), epilogue="store", tile_m=tile_m
    )
    assert plan.squares
    check(emulator, step, rows, "i8mm", plan=plan)


LUT_FORMATS = [catalog.ternary(), catalog.planes(1, 0), catalog.planes(3, 32), catalog.planes(4, 32, offset="zeros")]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", LUT_FORMATS, ids=lambda format: format.name)
def test_lookup(emulator, format, isa):
    y = aligned((8, 64), np.float32)
    x, _ = quantised(format, with_tables=True)
    step = matmul_lut.bind(tile_lut(random_weight(format)), x, y, state(2), epilogue="store", tile_m=1)
    check(emulator, step, 2, isa, vectors_at_once=matmul_lut.VECTORS_AT_ONCE[isa])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("epilogue", ["silu", "relu2"])
def test_gated_epilogues(emulator, epilogue, isa):
    """They hold the exponential and the division."""
    format, y = catalog.ternary(), aligned((8, 64), np.float32)
    weight = tile_mad(random_weight(format))
    step = matmul_mad.bind(weight, quantised(format)[0], y, state(1), epilogue=epilogue, tile_m=1)
    check(emulator, step, 1, isa, plan=plan_for("mad", isa, 1))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_dense(emulator, dtype, isa):
    weight, y = tile_dense(random_floats(N, K).astype(dtype)), aligned((8, 64), np.float32)
    x = aligned((8, 192), np.float32)
    x[:, :K] = random_floats(8, K)
    step = matmul_dense.bind(weight, x, y, state(2), epilogue="store", tile_m=2)
    check(emulator, step, 2, isa, plan=plan_for("dense", isa, 2))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["e4m3-g32-e8m0", "e5m2-row"])
def test_8_bit_floats(emulator, name, isa):
    weight, y = tile_dense(rtn(random_floats(N, K), catalog.find(name))), aligned((8, 64), np.float32)
    x = aligned((8, 192), np.float32)
    x[:, :K] = random_floats(8, K)
    step = matmul_dense.bind(weight, x, y, state(2), epilogue="store", tile_m=2)
    check(emulator, step, 2, isa, plan=plan_for("dense", isa, 2))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", [catalog.ternary(), catalog.planes(4, 32)], ids=lambda format: format.name)
def test_norm_and_quantise(emulator, format, isa):
    out, step = quantised(format, with_tables=True)
    for buffer in (out.xq, out.xs, out.sums, out.tables):
        buffer[...] = 0
    check(emulator, step, 8, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_embedding(emulator, isa):
    table, tokens = tile_mad(random_weight(catalog.planes(4, 32))), np.arange(16, dtype=np.int64) * 7 % N
    step = embed.bind(table, tokens, aligned((16, 192), np.float32))
    check(emulator, step, 3, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_rope(emulator, isa):
    qkv = random_floats(3, (HEADS + 2 * KV_HEADS) * HEAD_DIM)
    cos, sin = random_floats(CONTEXT, HEAD_DIM // 2), random_floats(CONTEXT, HEAD_DIM // 2)
    caches = rope.allocate_cache(KV_HEADS, CONTEXT, HEAD_DIM, "f16")
    weights = {"q_norm": random_floats(HEAD_DIM), "k_norm": random_floats(HEAD_DIM), "eps": 1e-6}
    check(emulator, rope.bind(qkv, *caches, cos, sin, state(3, 14), heads=HEADS, **weights), 3, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_attention(emulator, dtype, isa):
    keys, values = rope.allocate_cache(KV_HEADS, CONTEXT, HEAD_DIM, dtype)
    keys[:], values[..., :HEAD_DIM] = random_floats(*keys.shape), random_floats(*values.shape[:2], HEAD_DIM)
    q, y = random_floats(ROWS, HEADS * HEAD_DIM), aligned((ROWS, HEADS * HEAD_DIM), np.float32)
    (step,) = attention.bind(q, keys, values, y, state(ROWS, 13), heads=HEADS, tile=2, sums=2)
    check(emulator, step, ROWS, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", codes.CODES)
def test_cache_of_codes(emulator, kind, isa):
    for step in codes_steps(kind):
        check(emulator, step, ROWS, isa)
        step.launch.run(0, step.count(ROWS))  # natively, for the next one to have something to read


def codes_steps(kind: str) -> list[Step]:
    """The store of rows into a cache of codes, up to the end of a group of keys and beyond, and attention over it."""
    position, context = 61, 80
    held = cache.allocate(kind, KV_HEADS, context, HEAD_DIM, ROWS)
    queries = kv.queries_for(kind, ROWS, HEADS, HEAD_DIM)
    qkv = random_floats(ROWS, (HEADS + 2 * KV_HEADS) * HEAD_DIM)
    cos, sin = random_floats(context, HEAD_DIM // 2), random_floats(context, HEAD_DIM // 2)
    y, options = aligned((ROWS, HEADS * HEAD_DIM), np.float32), {"heads": HEADS}
    steps = kv.bind_store(qkv, held, queries, cos, sin, state(ROWS, position), **options)
    return steps + kv.bind_attention(qkv, held, queries, y, state(ROWS, position), **options, tile=2, sums=4)
