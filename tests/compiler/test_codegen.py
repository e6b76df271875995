"""Objects for another computer: an ELF file of that architecture, holding the instructions its targets are for."""

import pytest

from lutra.compiler import runtime, targets
from lutra.compiler.assembly import count, innermost_loops
from lutra.compiler.codegen import cross_compile, foreign_machine, optimise
from lutra.errors import LutraError
from lutra.formats import catalog
from lutra.formats.format import Format
from lutra.kernels.attention import KERNELS as ATTENTION
from lutra.kernels.matmul_lut import VECTORS_AT_ONCE, matmul_lut
from lutra.kernels.matmul_mad import matmul_mad
from lutra.kernels.plan import plan_for
from lutra.kernels.records import merge_attention

TARGETS = {target.isa: target for target in targets.TARGETS}
ELF_MACHINE = {"x86_64": 62, "aarch64": 183}  # e_machine, in bytes 18 and 19


def mad(isa: str, format: Format, tile_m: int = 1):
    static = dict(format=format, epilogue="store", has_bias=False, tile_m=tile_m, plan=plan_for("mad", isa, tile_m))
    return cross_compile(matmul_mad.trace(**static), TARGETS[isa], "kernel")


def lut(isa: str, format: Format):
    vectors = VECTORS_AT_ONCE[isa]
    static = dict(format=format, epilogue="store", has_bias=False, tile_m=1, vectors_at_once=vectors)
    return cross_compile(matmul_lut.trace(**static), TARGETS[isa], "kernel")


@pytest.mark.parametrize("isa", ["avx512", "avx2", "i8mm", "dotprod", "neon"])
def test_the_object_belongs_to_the_architecture(isa):
    code = mad(isa, catalog.ternary())
    assert code.object[:4] == b"\x7fELF"
    assert int.from_bytes(code.object[18:20], "little") == ELF_MACHINE[TARGETS[isa].architecture]
    assert "kernel:" in code.assembly and "@kernel(" in code.llvm


# The instructions that multiply, the byte products of each, and the instructions a weight may take
@pytest.mark.parametrize("isa, names, products, most", [
    ("i8mm", ["usdot"], 16, 0.25),
    ("dotprod", ["sdot"], 16, 0.25),
    ("neon", ["smull", "smlal", "smlal2", "smull2"], 8, 0.5),
])  # fmt: skip
def test_multiply_add_uses_the_dot_product(isa, names, products, most):
    plan = plan_for("mad", isa, 1)
    weights = 32 * 16 * plan.tiles * plan.unroll
    loop = innermost_loops(mad(isa, catalog.ternary()).assembly)[0]
    assert sum(count(loop).get(name, 0) for name in names) == weights // products
    assert len(loop) <= most * weights


# What four or eight rows may take for a weight and a row: by dot products it is .14 to .15
@pytest.mark.parametrize("tile_m, most", [(4, 0.1), (8, 0.09)])
@pytest.mark.parametrize("bits", [2, 4])
def test_many_rows_use_the_instruction_for_matrices(bits, tile_m, most):
    plan = plan_for("mad", "i8mm", tile_m)
    products = 32 * plan.lanes * plan.tiles * tile_m
    loops = innermost_loops(mad("i8mm", catalog.planes(bits, 0), tile_m).assembly)
    loop = max(loops, key=lambda loop: count(loop).get("usmmla", 0))
    assert count(loop)["usmmla"] == products // 32 and "usdot" not in count(loop)
    assert len(loop) <= most * products


@pytest.mark.parametrize("isa", ["i8mm", "dotprod", "neon"])
def test_lookup_uses_tbl(isa):
    loop = innermost_loops(lut(isa, catalog.ternary()).assembly)[0]
    assert count(loop)["tbl"] == 2 * 2 * 8 * 64 // 16  # planes, halves, quads of 32 weights, rows over lanes


@pytest.mark.parametrize("isa", ["i8mm", "neon"])
def test_products_and_sums_are_fused_where_a_kernel_says_so(isa):
    static = dict(heads=4, kv_heads=2, head_dim=64, rows=1, tile=2, together=1, span=1, split=True, cache_dtype="f16")
    assembly = cross_compile(ATTENTION["f16"].trace(**static), TARGETS[isa], "kernel").assembly
    assert "fmla" in assembly
    assert "fcvtl" in assembly  # f16 by the instruction, not by shifts


@pytest.mark.parametrize("isa, fused", [("i8mm", "fmla"), ("neon", "fmla"), ("avx2", "vfmadd"), ("avx512", "vfmadd")])
def test_each_dot_product_of_a_group_takes_three_instructions_of_floats(isa, fused):
    """A conversion, scale times scale, the product and the sum: as many of each."""
    names = count(innermost_loops(mad(isa, catalog.planes(4, 32)).assembly)[0])
    kinds = (fused, ("fmul", "vmulps"), ("scvtf", "vcvtdq2ps"))
    numbers = [sum(number for name, number in names.items() if name.startswith(kind)) for kind in kinds]
    assert numbers[0] > 0 and len(set(numbers)) == 1
    assert not {"fadd", "vaddps"} & set(names)


@pytest.mark.parametrize("isa, names", [
    ("i8mm", ("fmul", "fadd")), ("neon", ("fmul", "fadd")), ("avx2", ("vmulps", "vaddps")),
    ("avx512", ("vmulps", "vaddps")),
])  # fmt: skip
def test_elsewhere_they_stay_two_roundings(isa, names):
    """The merge of two records adds products, and does not say fma."""
    static = dict(heads=4, head_dim=16, num_sums=1, record=48)
    assembly = cross_compile(merge_attention.trace(**static), TARGETS[isa], "kernel").assembly
    assert all(name in assembly for name in names)
    assert not any(fused in assembly for fused in ("fmla", "fmls", "fmadd", "vfm"))


def test_waiting_threads_hint_to_an_arm_cpu():
    machine = foreign_machine(TARGETS["neon"], "aarch64")
    module = optimise(runtime.text("aarch64"), machine)
    assert "\tisb" in machine.emit_assembly(module)
    assert "fence seq_cst" in runtime.text("riscv64")


def test_portable_alone_is_no_computer():
    with pytest.raises(LutraError, match="expected a target of one architecture, got portable; name one"):
        cross_compile(matmul_mad.trace(format=catalog.ternary(), epilogue="store", has_bias=False, tile_m=1,
                                       plan=plan_for("mad", "portable", 1)), TARGETS["portable"], "kernel")  # fmt: skip
