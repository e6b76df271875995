"""Counting instructions of innermost loops, in the assembly of both architectures."""

from lutra.compiler.assembly import count, innermost_loops, instructions

ARM = """
kernel:
	.cfi_startproc
	cbz	x1, .LBB0_4
.LBB0_1:
	mov	x9, xzr
.LBB0_2:                                // %do
                                        //   Parent Loop BB0_1 Depth=1
	ldr	q0, [x0], #16
	usdot	v1.4s, v0.16b, v2.16b
	cmp	x9, x1
	b.lt	.LBB0_2
	cbnz	x3, .LBB0_1
.LBB0_4:
	ret
"""

X86 = """
.LBB0_2:                                # %do
	vpaddd	(%rdi,%rax), %zmm0, %zmm0
	je	.LBB0_3
	addq	$64, %rax
.LBB0_3:
	cmpq	%rsi, %rax
	jl	.LBB0_2
	jmp	.LBB0_9
"""


def test_the_inner_of_two_loops_by_hand():
    (loop,) = innermost_loops(ARM)
    assert [line.split()[0] for line in loop] == ["ldr", "usdot", "cmp", "b.lt"]
    assert count(loop) == {"b.lt": 1, "cmp": 1, "ldr": 1, "usdot": 1}
    assert len(instructions(ARM)) == 8


def test_a_branch_forward_is_no_loop():
    (loop,) = innermost_loops(X86)
    assert len(loop) == 5 and loop[0].startswith("vpaddd") and loop[-1].startswith("jl")


def test_straight_code_has_no_loop():
    assert innermost_loops("kernel:\n\tret\n") == []


def test_a_prefix_is_not_the_name():
    assert count(["{vex}\tvpdpbusd\t%ymm0, %ymm1, %ymm2", "vpand\t%ymm0"]) == {"vpand": 1, "vpdpbusd": 1}
