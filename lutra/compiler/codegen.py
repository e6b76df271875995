"""From LLVM text to machine code: for this computer, or for another one whose linker takes the object."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import llvmlite.binding as llvm

from lutra.compiler.check import check
from lutra.compiler.emit_llvm import emit
from lutra.compiler.host import architecture
from lutra.compiler.ir import Function
from lutra.compiler.targets import Target
from lutra.errors import LutraError

# A portable kernel may use only what every CPU of its architecture has.
_BASELINE_CPU = {"x86_64": "x86-64"}  # elsewhere LLVM calls it "generic"


@cache
def native_machine(target: Target) -> llvm.TargetMachine:
    """LLVM's code generator for code that this process maps and runs."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return _machine(llvm.Target.from_default_triple(), architecture(), target, "jitdefault")


@cache
def foreign_machine(target: Target, machine: str) -> llvm.TargetMachine:
    """LLVM's code generator for objects that a Linux linker for architecture `machine` takes."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return _machine(llvm.Target.from_triple(f"{machine}-unknown-linux-gnu"), machine, target, "default")


def _machine(base: llvm.Target, machine: str, target: Target, code_model: str) -> llvm.TargetMachine:
    return base.create_target_machine(
        cpu=_BASELINE_CPU.get(machine, "generic"),
        features=target.llvm_features,
        opt=3,
        reloc="default",
        codemodel=code_model,
    )


def optimise(text: str, machine: llvm.TargetMachine) -> llvm.ModuleRef:
    """Parse, verify and optimise a module of LLVM text."""
    module = llvm.parse_assembly(text)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = False  # kernels say their vectors themselves
    options.slp_vectorization = False
    options.loop_unrolling = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return module


@dataclass(frozen=True)
class ForeignCode:
    """A kernel's code for another computer: `void symbol(void *args, int64_t begin, int64_t end)`, see emit_llvm.py."""

    symbol: str
    llvm: str
    assembly: str
    object: bytes  # relocatable ELF


def cross_compile(function: Function, target: Target, symbol: str) -> ForeignCode:
    """Compile a traced kernel for a target of any architecture LLVM brings along, without running it.

    Raises LutraError for `portable`, which names no architecture.
    """
    if not target.architecture:
        raise LutraError(f"expected a target of one architecture, got {target.isa}; name one of its instruction sets")
    check(function)
    machine = foreign_machine(target, target.architecture)
    module = optimise(emit(function, symbol, target), machine)
    return ForeignCode(symbol, str(module), machine.emit_assembly(module), machine.emit_object(module))
