"""How fast this computer multiplies with tile registers: int8 operations a second, where the CPU has them.

The roof that reports call the int8 peak is that of dot products of vectors, which every CPU has; this one lies higher.
"""

from __future__ import annotations

import numpy as np

from lutra.compiler.kernel import kernel
from lutra.compiler.language import Pointer, Tile, i8, i32, i64, loop
from lutra.compiler.launch import Step
from lutra.machine import limits

SIDE, ROWS, DEPTH = 2, 16, 64  # side * side sums of [rows, rows], depth bytes along K
TILE_BYTES = ROWS * DEPTH
OPERANDS = 4 * SIDE  # tiles on either side, read in turn so that no product can be reused
OPERATIONS = 2 * SIDE * SIDE * ROWS * ROWS * DEPTH  # in a turn


@kernel
def multiply_tiles(a: Pointer[i8], b: Pointer[i8], out: Pointer[i32], task: i64, *, turns):
    """`turns` times side * side products of tiles; out [task][i][j][row][column]."""
    sums = [[Tile(SIDE * i + j, i32, ROWS, ROWS) for j in range(SIDE)] for i in range(SIDE)]
    left = [Tile(SIDE * SIDE + i, i8, ROWS, DEPTH) for i in range(SIDE)]
    right = [Tile(SIDE * SIDE + SIDE + j, i8, DEPTH // 4, 4 * ROWS) for j in range(SIDE)]
    for row in sums:
        for tile in row:
            tile.zero()
    for turn in loop(0, turns):
        at = (turn & 3) * (SIDE * TILE_BYTES)
        for i in range(SIDE):
            left[i].load(a, at + i * TILE_BYTES, DEPTH)
            right[i].load(b, at + i * TILE_BYTES, 4 * ROWS)
        for i in range(SIDE):
            for j in range(SIDE):
                sums[i][j].dot4(left[i], right[j])
    for n, tile in enumerate(tile for row in sums for tile in row):
        tile.store(out, (task * SIDE * SIDE + n) * (ROWS * ROWS), ROWS)


def arguments(tasks: int) -> dict[str, np.ndarray]:
    """Random operands, as a CPU's rate depends on how many bits change; each row on a cache line of its own."""
    rng = np.random.default_rng(0)
    room = rng.integers(-127, 128, (2, OPERANDS * TILE_BYTES + DEPTH), dtype=np.int8)
    a, b = (one[-one.ctypes.data % DEPTH :][: OPERANDS * TILE_BYTES] for one in room)
    return {"a": a, "b": b, "out": np.zeros(tasks * SIDE * SIDE * ROWS * ROWS, np.int32)}


def tile_gops(threads: int, seconds: float | None = None) -> float:
    """Best rate of int8 operations on `threads` threads with tiles, in 1e9 a second.

    Raises KernelError where the instruction set has no tiles.
    """
    tasks = 8 * threads
    step = Step(multiply_tiles.bind(arguments(tasks), turns=limits.TURNS), tasks, 0)
    return OPERATIONS * limits.TURNS * tasks / 1e9 / limits.best_s([step], threads, seconds)
