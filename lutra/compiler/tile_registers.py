"""Words for CPUs that multiply small matrices: tile registers of at most 16 rows of 64 bytes, as of Intel's AMX.

A `Tile` names one of eight registers and says what it holds.  Its words have effects in the order they stand in; a tile
keeps its contents until it is written again, and a kernel that begins has none.  Kernels with tiles run where a target
has them (`targets.TARGETS`), and everywhere in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

from lutra.compiler.builder import current, fail
from lutra.compiler.ir import Op, Value
from lutra.compiler.memory import index_of, pointed
from lutra.compiler.types import DType, i8, i32, u8
from lutra.compiler.values import Operand

NUMBER, ROWS, ROW_BYTES = 8, 16, 64  # of registers; most that one holds


@dataclass(frozen=True)
class Tile:
    """A register with a matrix [rows, columns] of i32 sums, i8 or u8.

    Raises KernelError where no register holds that.
    """

    number: int
    dtype: DType
    rows: int
    columns: int

    def __post_init__(self) -> None:
        if not (0 <= self.number < NUMBER and 0 < self.rows <= ROWS and 0 < self.row_bytes <= ROW_BYTES):
            raise fail(f"expected one of 8 tiles of at most {ROWS} rows of {ROW_BYTES} bytes, got {self}")
        if self.dtype not in (i8, u8, i32) or self.row_bytes % 4:
            raise fail(f"a tile holds rows of i32, or of a multiple of four i8 or u8, got {self}")

    def __repr__(self) -> str:
        return f"t{self.number}:{self.dtype}x{self.rows}x{self.columns}"

    @property
    def row_bytes(self) -> int:
        return self.columns * self.dtype.size_bytes

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and bytes in a row."""
        return self.rows, self.row_bytes

    def zero(self) -> None:
        current().emit("tile_zero", (), None, tile=self)

    def load(self, pointer: Value, index: Operand, stride: Operand) -> None:
        """Row r becomes elements index + r * stride, ... of a buffer."""
        self._move("tile_load", pointer, index, stride)

    def store(self, pointer: Value, index: Operand, stride: Operand) -> None:
        """Row r goes to elements index + r * stride, ... of a buffer."""
        self._move("tile_store", pointer, index, stride)

    def dot4(self, left: Tile, right: Tile) -> None:
        """self[m, n] += sum over k and j < 4 of left[m, 4k + j] * right[k, 4n + j], exactly.

        left   i8      [M, 4K]
        right  i8, u8  [K, 4N]
        """
        shapes = (left.rows, left.columns, right.columns) == (self.rows, 4 * right.rows, 4 * self.columns)
        if not shapes or self.dtype != i32 or left.dtype != i8 or right.dtype == i32:
            raise fail(f"dot4 needs tiles of i32 [M, N], i8 [M, 4K], 8 bits [K, 4N], got {self}, {left}, {right}")
        current().emit("tile_dot4", (), None, tile=self, left=left, right=right)

    def _move(self, name: str, pointer: Value, index: Operand, stride: Operand) -> None:
        if pointed(pointer) != self.dtype:
            raise fail(f"expected a pointer to {self.dtype} for {self}, got {pointer.type}")
        current().emit(name, (pointer, index_of(index), index_of(stride)), None, tile=self)


def tiles_of(op: Op) -> list[Tile]:
    """The tiles that an operation has to do with."""
    return [value for value in op.attributes.values() if isinstance(value, Tile)]
