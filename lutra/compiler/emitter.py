"""Collects LLVM text while a kernel is emitted, and the spelling of types and constants."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lutra.compiler.ir import Op, Value
from lutra.compiler.types import Type, f32


@dataclass
class Emitter:
    """Collects LLVM lines; `line` returns the name of the value it defines."""

    lines: list[str] = field(default_factory=list)
    declarations: set[str] = field(default_factory=set)
    names: dict[str, str] = field(default_factory=dict)  # IR value → LLVM value
    count: int = 0

    def line(self, text: str) -> str:
        self.count += 1
        name = f"%t{self.count}"
        self.lines.append(f"  {name} = {text}")
        return name

    def of(self, value: Value) -> str:
        return self.names[value.name]

    def call(self, result: str, intrinsic: str, *args: tuple[str, str]) -> str:
        """Call an LLVM intrinsic with (type, value) arguments."""
        types = ", ".join(kind for kind, _ in args)
        self.declarations.add(f"declare {result} @{intrinsic}({types})")
        return self.line(f"call {result} @{intrinsic}({', '.join(f'{kind} {value}' for kind, value in args)})")

    def part(self, value: str, kind: Type, start: int, lanes: int) -> str:
        """Lanes start .. start + lanes - 1 of a vector."""
        if lanes == kind.lanes:
            return value
        picks = ", ".join(f"i32 {start + i}" for i in range(lanes))
        return self.line(f"shufflevector {kind.llvm} {value}, {kind.llvm} poison, <{lanes} x i32> <{picks}>")

    def parts(self, op: Op, operands: Sequence[Value], lanes: int) -> Iterator[list[str]]:
        """For each `lanes` lanes of the result the lanes of the operands that they are made of."""
        total = result_type(op).lanes
        kinds = [kind_of(operand) for operand in operands]
        for start in range(0, total, lanes):
            yield [
                self.part(self.of(operand), kind, start * kind.lanes // total, lanes * kind.lanes // total)
                for operand, kind in zip(operands, kinds, strict=True)
            ]

    def join(self, parts: list[str], kind: Type) -> str:
        """Concatenate equal vectors of type `kind`; their number is a power of two."""
        while len(parts) > 1:
            picks = ", ".join(f"i32 {i}" for i in range(2 * kind.lanes))
            parts = [
                self.line(f"shufflevector {kind.llvm} {a}, {kind.llvm} {b}, <{2 * kind.lanes} x i32> <{picks}>")
                for a, b in zip(parts[::2], parts[1::2], strict=True)
            ]
            kind = Type(kind.dtype, 2 * kind.lanes)
        return parts[0]

    def choose(self, condition: str, kind: Type, a: str, b: str) -> str:
        """a in the lanes where the condition holds, else b."""
        mask = Type(kind.dtype, kind.lanes).llvm.replace(kind.dtype.llvm, "i1") if kind.lanes > 1 else "i1"
        return self.line(f"select {mask} {condition}, {kind.llvm} {a}, {kind.llvm} {b}")

    def constant(self, kind: Type, number: int | float) -> str:
        text = float_text(float(number)) if kind.dtype == f32 else str(int(number))
        if kind.lanes == 1:
            return text
        return f"splat ({kind.dtype.llvm} {text})"


def float_text(number: float) -> str:
    """An f32 in LLVM's exact spelling: the hexadecimal image of the same value as a double."""
    single = struct.unpack("<f", struct.pack("<f", number))[0]
    return f"0x{struct.unpack('<Q', struct.pack('<d', single))[0]:016X}"


def kind_of(value: Value) -> Type:
    assert isinstance(value.type, Type)
    return value.type


def result_type(op: Op) -> Type:
    assert op.result is not None
    return kind_of(op.result)
