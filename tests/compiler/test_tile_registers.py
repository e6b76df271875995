"""Tiles: what their words mean, what is refused, and the CPU's own against that meaning."""

import numpy as np
import pytest

from lutra.compiler import host, targets
from lutra.compiler.kernel import kernel
from lutra.compiler.language import Pointer, Tile, i8, i32, i64, load, loop, scratch, store, u8
from lutra.errors import KernelError

WITH_TILES = [target.isa for target in targets.available() if target.has_tiles]
needs_tiles = pytest.mark.skipif(not WITH_TILES, reason="needs a CPU with AMX tiles, and leave to use them")


@kernel
def product(
    a: Pointer[i8], b: Pointer[i8], c: Pointer[u8], out: Pointer[i32], task: i64, *, rows, depth, columns, unsigned
):
    """out[task] = 2 * a @ b, of b as tiles have it: [depth / 4][column][4]; with stored sums loaded again."""
    left = Tile(1, i8, rows, depth)
    right = Tile(7, u8 if unsigned else i8, depth // 4, 4 * columns)
    sums = Tile(3, i32, rows, columns)
    kept = scratch(i32, rows * columns)
    left.load(a, task * rows * depth, depth)
    right.load(c if unsigned else b, task * depth * columns, 4 * columns)
    sums.zero()
    sums.dot4(left, right)
    sums.store(kept, 0, columns)
    sums.zero()
    sums.load(kept, 0, columns)
    sums.dot4(left, right)
    sums.store(out, task * rows * columns, columns)


def arguments(rows: int, depth: int, columns: int, tasks: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows + depth)
    ends = np.array([-128, 127], np.int8)
    a = np.where(rng.random((tasks, rows, depth)) < 0.5, rng.choice(ends, (tasks, rows, depth)), 3).astype(np.int8)
    b = rng.integers(-128, 128, (tasks, depth // 4, columns, 4)).astype(np.int8)
    return {"a": a, "b": b, "c": b.view(np.uint8), "out": np.zeros((tasks, rows, columns), np.int32)}


def wanted(args: dict[str, np.ndarray], unsigned: bool) -> np.ndarray:
    b = args["c" if unsigned else "b"].astype(np.int64).transpose(0, 1, 3, 2)  # [task][depth / 4][4][column]
    return 2 * args["a"].astype(np.int64) @ b.reshape(len(b), -1, b.shape[-1])


def test_by_hand():
    """One row 1 2 3 4 times columns of -1 and of 5 5 5 6: twice -10 and 54."""
    args = arguments(1, 4, 2, tasks=1)
    args["a"][:] = [1, 2, 3, 4]
    args["b"][0, 0] = [[-1] * 4, [5, 5, 5, 6]]
    product.interpret(args, 1, rows=1, depth=4, columns=2, unsigned=False)
    assert args["out"].tolist() == [[[-20, 108]]]
    product.interpret(args, 1, rows=1, depth=4, columns=2, unsigned=True)
    assert args["out"][0, 0, 0] == 2 * 255 * 10


SHAPES = [(16, 64, 16), (1, 4, 1), (5, 12, 3), (16, 32, 16), (8, 64, 16)]


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("rows, depth, columns", SHAPES)
def test_the_meaning_is_a_product_of_matrices(rows, depth, columns, unsigned):
    args = arguments(rows, depth, columns)
    product.interpret(args, 2, rows=rows, depth=depth, columns=columns, unsigned=unsigned)
    assert (args["out"] == wanted(args, unsigned)).all()


@needs_tiles
@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("rows, depth, columns", SHAPES)
def test_the_cpu_does_what_is_meant(rows, depth, columns, unsigned):
    args = arguments(rows, depth, columns)
    product.check(args, 2, WITH_TILES[0], rows=rows, depth=depth, columns=columns, unsigned=unsigned)


def test_a_row_outside_the_buffer_is_seen():
    args = arguments(4, 8, 4)
    args["b"] = args["b"].reshape(-1)[:-1].copy()
    with pytest.raises(KernelError, match="tile_load of elements .* leaves b"):
        product.interpret(args, 2, rows=4, depth=8, columns=4, unsigned=False)


@kernel
def garbage(out: Pointer[i32], task: i64):
    """Reads scratch memory that nothing was written to, then its own of the turn before."""
    mine = scratch(i32, 2)
    for turn in loop(0, 2):
        store(out, turn, load(mine, turn))
        store(mine, turn, 7)


def test_scratch_memory_holds_rubbish_at_first_and_is_bounded():
    out = np.zeros(2, np.int32)
    garbage.interpret({"out": out}, 1)
    assert out.tolist() == [np.int32(np.uint32(0xA5A5A5A5).astype(np.int32))] * 2
    assert garbage.trace().stores == ("out",)  # its own memory is nobody's argument


@kernel
def wrong(a: Pointer[i8], out: Pointer[i32], task: i64, *, fault):
    sums, left, right = Tile(0, i32, 4, 4), Tile(1, i8, 4, 8), Tile(2, i8, 2, 16)
    if fault == "number":
        Tile(8, i8, 4, 8)
    elif fault == "rows":
        Tile(1, i8, 17, 8)
    elif fault == "columns":
        Tile(1, i8, 4, 6)
    elif fault == "shapes":
        sums.dot4(left, Tile(3, i8, 4, 16))
    elif fault == "types":
        sums.dot4(left, Tile(2, i32, 2, 4))
    elif fault == "pointer":
        left.load(out, 0, 8)
    elif fault == "scratch":
        scratch(i32, 0)
    elif fault == "twice":
        left.load(a, 0, 8)
        Tile(1, i8, 2, 8).load(a, 0, 8)
    right.load(a, 0, 16)


@pytest.mark.parametrize(
    "fault, message",
    [
        ("number", "one of 8 tiles"), ("rows", "at most 16 rows"), ("columns", "a multiple of four"),
        ("shapes", "dot4 needs tiles"), ("types", "dot4 needs tiles"), ("pointer", "expected a pointer to i8"),
        ("scratch", "at least one element"), ("twice", "has been"),
    ],
)  # fmt: skip
def test_what_no_cpu_has_is_refused_with_its_line(fault, message):
    args = {"a": np.zeros(64, np.int8), "out": np.zeros(16, np.int32)}
    with pytest.raises(KernelError, match=message) as error:
        wrong.compile("portable", fault=fault)
    assert args and "test_tile_registers.py" in str(error.value)


def test_a_target_without_tiles_says_so():
    with pytest.raises(KernelError, match="product: portable has no tile registers"):
        product.compile("portable", rows=4, depth=8, columns=4, unsigned=False)


def test_tiles_need_the_leave_of_the_system(monkeypatch):
    found = {"avx2": True, "amx-tile": True, "amx-int8": True}
    monkeypatch.setattr(host.llvm, "get_host_cpu_features", lambda: found)
    monkeypatch.setattr(host, "architecture", lambda: "x86_64")
    for allowed, want in ((True, {"avx2", "amx-tile", "amx-int8"}), (False, {"avx2"})):
        monkeypatch.setattr(host, "may_use_tiles", lambda allowed=allowed: allowed)
        assert host.host_features.__wrapped__() == want


def test_the_tables_of_another_target_hold_where_it_has_no_rows():
    assert targets.named("amx").vectors == "avx512" == targets.named("avx512").vectors
    assert targets.named("amx").features > targets.named("avx512").features
