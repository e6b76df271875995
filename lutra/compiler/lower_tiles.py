"""Tile registers as Intel's AMX has them, in LLVM text.  Its instructions name registers, not values."""

from __future__ import annotations

from lutra.compiler.emitter import Emitter
from lutra.compiler.ir import Function, Op
from lutra.compiler.tile_registers import Tile, tiles_of
from lutra.compiler.types import i8

_CONFIG_BYTES, _PALETTE = 64, 1
_ROW_BYTES_AT, _ROWS_AT = 16, 48  # in a configuration: 16-bit and 8-bit numbers


def registers(function: Function) -> dict[int, Tile]:
    """The tile registers a function uses, by number."""
    return {tile.number: tile for op in function.walk() for tile in tiles_of(op)}


def configure(e: Emitter, tiles: dict[int, Tile], symbol: str) -> None:
    """Set the shapes of the registers; before anything else is done with them."""
    config = bytearray(_CONFIG_BYTES)
    config[0] = _PALETTE
    for number, tile in tiles.items():
        config[_ROW_BYTES_AT + 2 * number] = tile.row_bytes
        config[_ROWS_AT + number] = tile.rows
    text = "".join(f"\\{byte:02X}" for byte in config)
    e.declarations.add(f'@{symbol}_tiles = private constant [{_CONFIG_BYTES} x i8] c"{text}", align 64')
    _effect(e, "llvm.x86.ldtilecfg", ("ptr", f"@{symbol}_tiles"))


def release(e: Emitter) -> None:
    """Give the registers up, so that nothing has to keep their contents."""
    _effect(e, "llvm.x86.tilerelease")


def zero(e: Emitter, op: Op) -> None:
    _effect(e, "llvm.x86.tilezero", _number(op.attributes["tile"]))


def load(e: Emitter, op: Op, address: str) -> None:
    _effect(e, "llvm.x86.tileloadd64", _number(op.attributes["tile"]), ("ptr", address), _stride(e, op))


def store(e: Emitter, op: Op, address: str) -> None:
    _effect(e, "llvm.x86.tilestored64", _number(op.attributes["tile"]), ("ptr", address), _stride(e, op))


def dot4(e: Emitter, op: Op) -> None:
    tiles = [op.attributes[name] for name in ("tile", "left", "right")]
    signs = "ss" if tiles[2].dtype == i8 else "su"
    _effect(e, f"llvm.x86.tdpb{signs}d", *map(_number, tiles))


def _number(tile: Tile) -> tuple[str, str]:
    return "i8", str(tile.number)


def _stride(e: Emitter, op: Op) -> tuple[str, str]:
    """In bytes."""
    size = op.attributes["tile"].dtype.size_bytes
    return "i64", e.line(f"mul i64 {e.of(op.operands[2])}, {size}")


def _effect(e: Emitter, intrinsic: str, *args: tuple[str, str]) -> None:
    """Call an intrinsic that returns nothing; a register's number must be a constant."""
    types = ", ".join("i8 immarg" if kind == "i8" else kind for kind, _ in args)
    e.declarations.add(f"declare void @{intrinsic}({types})")
    e.lines.append(f"  call void @{intrinsic}({', '.join(f'{kind} {value}' for kind, value in args)})")
