"""From IR to LLVM text: `void name(ptr args, i64 begin, i64 end)` runs tasks begin .. end - 1.

`args` points to 8-byte slots, one a parameter: an address, an i64, or an f32 in the low half.  Variables are stack
slots that LLVM promotes to registers.
"""

from __future__ import annotations

from lutra.compiler import instructions, lower_tiles
from lutra.compiler.emitter import Emitter, kind_of
from lutra.compiler.ir import Function, Op, Value
from lutra.compiler.targets import Target
from lutra.compiler.types import Pointer
from lutra.errors import KernelError

_ATTRIBUTES = 'nounwind "min-legal-vector-width"="512" "prefer-vector-width"="512"'


def emit(function: Function, symbol: str, target: Target) -> str:
    """The LLVM module of one kernel for one target."""
    e = _KernelEmitter(target)
    e.function(function, symbol)
    declarations = "\n".join(sorted(e.declarations))
    attributes = f'{_ATTRIBUTES} "tune-cpu"="{target.tune}"' if target.tune else _ATTRIBUTES
    return f"{declarations}\n\n" + "\n".join(e.lines) + f"\n\nattributes #0 = {{ {attributes} }}\n"


class _KernelEmitter(Emitter):
    def __init__(self, target: Target):
        super().__init__()
        self.target = target
        self.labels = 0

    def function(self, function: Function, symbol: str) -> None:
        self.lines.append(f"define void @{symbol}(ptr noalias %args, i64 %begin, i64 %end) #0 {{\nentry:")
        for slot, param in enumerate(function.params):
            self._param(slot, param)
        for op in function.walk():
            if op.name == "var":
                assert op.result is not None
                self.lines.append(f"  %slot{op.result.name} = alloca {op.result.type.llvm}, align 64")
            elif op.name == "scratch":
                self._reserve(op)
        tiles = lower_tiles.registers(function)
        if tiles and not self.target.has_tiles:
            raise KernelError(f"{function.name}: {self.target.isa} has no tile registers; take a kernel without them")
        if tiles:
            lower_tiles.configure(self, tiles, symbol)
        self.lines.append("  br label %head")
        self.lines.append("head:\n  %task = phi i64 [ %begin, %entry ], [ %next, %latch ]")
        self.lines.append("  %more = icmp slt i64 %task, %end\n  br i1 %more, label %body, label %exit\nbody:")
        self.names["task"] = "%task"
        self.body(function.body)
        self.lines.append("  br label %latch\nlatch:\n  %next = add i64 %task, 1\n  br label %head\nexit:")
        if tiles:
            lower_tiles.release(self)
        self.lines.append("  ret void\n}")

    def _reserve(self, op: Op) -> None:
        """Room on the stack, taken once: in a loop every turn would take more."""
        assert op.result is not None and isinstance(op.result.type, Pointer)
        name = self.names[op.result.name] = f"%scratch{op.result.name}"
        room = f"[{op.attributes['count']} x {op.result.type.dtype.llvm}]"
        self.lines.append(f"  {name} = alloca {room}, align 64")

    def _param(self, slot: int, param: Value) -> None:
        address = self.line(f"getelementptr i64, ptr %args, i64 {slot}")
        self.names[param.name] = self.line(f"load {param.type.llvm}, ptr {address}, align 8")

    def body(self, ops: list[Op]) -> None:
        for op in ops:
            handler = getattr(self, f"_{op.name}", None)
            if handler is not None:
                handler(op)
            else:
                assert op.result is not None
                row = instructions.best(op, self.target.features)
                self.names[op.result.name] = row.emit(self, op)

    def _const(self, op: Op) -> None:
        assert op.result is not None
        self.names[op.result.name] = self.constant(kind_of(op.result), op.attributes["number"])

    def _address(self, op: Op) -> str:
        pointer, index = op.operands[:2]
        assert isinstance(pointer.type, Pointer)
        return self.line(f"getelementptr {pointer.type.dtype.llvm}, ptr {self.of(pointer)}, i64 {self.of(index)}")

    def _load(self, op: Op) -> None:
        assert op.result is not None
        kind = kind_of(op.result)
        align = max(1, kind.dtype.size_bytes)
        self.names[op.result.name] = self.line(f"load {kind.llvm}, ptr {self._address(op)}, align {align}")

    def _store(self, op: Op) -> None:
        value = op.operands[2]
        kind = kind_of(value)
        address = self._address(op)
        self.lines.append(f"  store {kind.llvm} {self.of(value)}, ptr {address}, align {max(1, kind.dtype.size_bytes)}")

    def _prefetch(self, op: Op) -> None:
        address = self._address(op)
        self.declarations.add("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        locality = 4 - op.attributes["level"]  # 3 asks for the nearest cache
        self.lines.append(f"  call void @llvm.prefetch.p0(ptr {address}, i32 0, i32 {locality}, i32 1)")

    def _scratch(self, op: Op) -> None:
        """Reserved when the function began."""

    def _tile_zero(self, op: Op) -> None:
        lower_tiles.zero(self, op)

    def _tile_load(self, op: Op) -> None:
        lower_tiles.load(self, op, self._address(op))

    def _tile_store(self, op: Op) -> None:
        lower_tiles.store(self, op, self._address(op))

    def _tile_dot4(self, op: Op) -> None:
        lower_tiles.dot4(self, op)

    def _var(self, op: Op) -> None:
        assert op.result is not None
        self.names[op.result.name] = f"%slot{op.result.name}"
        self._write(op.result, op.operands[0])

    def _set(self, op: Op) -> None:
        self._write(*op.operands)

    def _write(self, slot: Value, value: Value) -> None:
        self.lines.append(f"  store {value.type.llvm} {self.of(value)}, ptr {self.of(slot)}, align 64")

    def _get(self, op: Op) -> None:
        assert op.result is not None
        self.names[op.result.name] = self.line(f"load {op.result.type.llvm}, ptr {self.of(op.operands[0])}, align 64")

    def _loop(self, op: Op) -> None:
        assert op.result is not None
        begin, end = map(self.of, op.operands)
        self.labels += 1
        n = self.labels
        self.names[op.result.name] = f"%k{n}"
        self.lines.append(f"  br label %enter{n}\nenter{n}:\n  br label %test{n}")
        self.lines.append(f"test{n}:\n  %k{n} = phi i64 [ {begin}, %enter{n} ], [ %k{n}.next, %again{n} ]")
        self.lines.append(
            f"  %k{n}.more = icmp slt i64 %k{n}, {end}\n  br i1 %k{n}.more, label %do{n}, label %done{n}\ndo{n}:"
        )
        self.body(op.body)
        self.lines.append(f"  br label %again{n}\nagain{n}:\n  %k{n}.next = add nsw i64 %k{n}, {op.attributes['step']}")
        self.lines.append(f"  br label %test{n}\ndone{n}:")

    def _when(self, op: Op) -> None:
        self.labels += 1
        n = self.labels
        self.lines.append(f"  br i1 {self.of(op.operands[0])}, label %then{n}, label %after{n}\nthen{n}:")
        self.body(op.body)
        self.lines.append(f"  br label %after{n}\nafter{n}:")
