"""The formats lutra knows: constructors for every combination of axes, and a table of those somebody publishes.

A name spells the axes, and only those that differ from the default:

    planes4 -g32 -mins -f32 -token
    |        |    |     |    `- one activation scale per token, though weights have groups
    |        |    |     `- type of scales and mins, if not f16 for groups, f32 for rows
    |        |    `- offset: zeros or mins; or zero1: the constant taken from codes, if not the middle one
    |        `- group size; row
    `- codes: planes1 .. planes7, ternary (a row unless a group is named), int8
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lutra.errors import FormatError
from lutra.formats.format import AXES, Format
from lutra.formats.picture import draw

PLANE_BITS = (1, 2, 3, 4, 5, 6, 7)


def planes(bits: int, group_size: int, *, zero: int | None = None, scale_dtype: str | None = None, offset: str = "none",
           activation_group: int | None = None) -> Format:  # fmt: skip
    """Codes of 1 to 7 bits on a uniform grid.

    zero              default: the middle code 2**(bits - 1) if there is no offset, else 0
    scale_dtype       default: f16 for groups, f32 for rows
    activation_group  default: group_size
    """
    middle = 2 ** (bits - 1) if offset == "none" else 0
    zero = middle if zero is None else zero
    words = [f"planes{bits}", _group_word(group_size)]
    words += [f"zero{zero}"] if zero != middle else []
    return _format(words, group_size, scale_dtype, activation_group,
                   storage="planes", bits=bits, zero=zero, offset=offset)  # fmt: skip


def ternary(group_size: int = 0, *, scale_dtype: str | None = None, activation_group: int | None = None) -> Format:
    """Weights -1, 0, +1 as codes 0, 1, 2 of 2 bits.

    group_size   default: one f32 scale per row, activations per token, as BitNet has it
    the others   as for planes
    """
    words = ["ternary"] + ([_group_word(group_size)] if group_size else [])
    return _format(words, group_size, scale_dtype, activation_group,
                   storage="planes", bits=2, zero=1, offset="none", alphabet="trit")  # fmt: skip


def int8(group_size: int, *, scale_dtype: str | None = None, activation_group: int | None = None) -> Format:
    """Signed bytes, stored with 128 added: code 128 is the value 0."""
    return _format(["int8", _group_word(group_size)], group_size, scale_dtype, activation_group,
                   storage="bytes", bits=8, zero=128, offset="none")  # fmt: skip


def _group_word(group_size: int) -> str:
    return f"g{group_size}" if group_size else "row"


def _format(words: list[str], group_size: int, scale_dtype: str | None, activation_group: int | None, *,
            storage: str, bits: int, zero: int, offset: str, alphabet: str = "uniform") -> Format:  # fmt: skip
    """Fill in the defaults that all constructors share, and finish the name."""
    usual = "f16" if group_size else "f32"
    scale_dtype = usual if scale_dtype is None else scale_dtype
    activation_group = group_size if activation_group is None else activation_group
    words += [offset] if offset != "none" else []
    words += [scale_dtype] if scale_dtype != usual else []
    words += ["token"] if activation_group != group_size else []
    return Format("-".join(words), storage, bits, group_size, zero, scale_dtype, offset, activation_group,
                  alphabet=alphabet)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A format that models are published in, or a quantiser of ours writes, and where it is defined."""

    format: Format
    source: str


ROWS: tuple[Row, ...] = (
    Row(ternary(), "BitNet b1.58, arXiv 2402.17764, section 2; TriLM, arXiv 2407.12327"),
    Row(ternary(64), "ternary with short groups, as GGUF Q2_0 has them, without its fourth level"),
    Row(ternary(128), "Ternary-Bonsai, prism-ml: one f16 scale per 128 weights"),
    Row(ternary(256), "GGUF TQ1_0 and TQ2_0: ggml, src/ggml-common.h, block_tq1_0 and block_tq2_0"),
    Row(planes(1, 0, offset="mins"), "BitNet with 1 bit, arXiv 2310.11453, section 2.1: scale 2 a, min -a"),
    Row(planes(1, 32, offset="mins"), "1 bit, smallest usual group; BCQ with one plane, LUT-GEMM, arXiv 2206.09557"),
    Row(planes(1, 128, offset="mins"), "GGUF Q1_0: ggml, src/ggml-common.h, block_q1_0: scale 2 d, min -d"),
    Row(planes(2, 16, offset="mins", scale_dtype="f32"), "GGUF Q2_K with its two-level scales multiplied out"),
    Row(planes(2, 64, zero=1), "GGUF Q2_0: levels -1 to 2"),
    Row(planes(2, 64, offset="mins"), "round to nearest, asymmetric; HQQ, mobiusml.github.io/hqq_blog"),
    Row(planes(2, 128, offset="zeros"), "GPTQ, arXiv 2210.17323; EfficientQAT, arXiv 2407.11062"),
    Row(planes(2, 0), "round to nearest, one scale per row"),
    Row(planes(3, 16, scale_dtype="f32"), "GGUF Q3_K with its two-level scales multiplied out"),
    Row(planes(3, 64, offset="mins"), "round to nearest, asymmetric; HQQ, mobiusml.github.io/hqq_blog"),
    Row(planes(3, 128, offset="zeros"), "GPTQ, arXiv 2210.17323; AutoRound, arXiv 2309.05516"),
    Row(planes(3, 0), "round to nearest, one scale per row"),
    Row(planes(4, 32), "GGUF Q4_0: ggml, src/ggml-common.h, block_q4_0"),
    Row(planes(4, 32, offset="mins"), "GGUF Q4_1: ggml, src/ggml-common.h, block_q4_1"),
    Row(planes(4, 32, offset="mins", scale_dtype="f32"), "GGUF Q4_K with its two-level scales multiplied out"),
    Row(planes(4, 64, offset="mins"), "round to nearest, asymmetric; HQQ, mobiusml.github.io/hqq_blog"),
    Row(planes(4, 128, offset="zeros"), "GPTQ, arXiv 2210.17323; AWQ, arXiv 2306.00978; AutoRound, arXiv 2309.05516"),
    Row(planes(4, 256), "round to nearest, long groups"),
    Row(planes(4, 0), "round to nearest, one scale per row"),
    Row(planes(5, 32), "GGUF Q5_0: ggml, src/ggml-common.h, block_q5_0"),
    Row(planes(5, 32, offset="mins"), "GGUF Q5_1: ggml, src/ggml-common.h, block_q5_1"),
    Row(planes(5, 32, offset="mins", scale_dtype="f32"), "GGUF Q5_K with its two-level scales multiplied out"),
    Row(planes(5, 128, offset="zeros"), "GPTQModel, format gptq_p: 5 = 4 + 1 bits"),
    Row(planes(6, 16, scale_dtype="f32"), "GGUF Q6_K with its two-level scales multiplied out"),
    Row(planes(6, 128, offset="zeros"), "GPTQModel, format gptq_p: 6 = 4 + 2 bits"),
    Row(planes(6, 0), "round to nearest, one scale per row"),
    Row(planes(7, 128, offset="zeros"), "GPTQModel, format gptq_p: 7 = 4 + 2 + 1 bits"),
    Row(planes(7, 0), "round to nearest, one scale per row"),
    Row(int8(32), "GGUF Q8_0: ggml, src/ggml-common.h, block_q8_0"),
    Row(int8(0), "round to nearest, one scale per output channel: LLM.int8(), arXiv 2208.07339, section 2.1"),
)
FORMATS: dict[str, Format] = {row.format.name: row.format for row in ROWS}
SOURCES: dict[str, str] = {row.format.name: row.source for row in ROWS}


def find(name: str) -> Format:
    """Return the format of a name: a row of the table, or any other combination of axes.

    raises   FormatError   no combination has this name
    """
    if name in FORMATS:
        return FORMATS[name]
    every = _every()
    if name not in every:
        near = difflib.get_close_matches(name, every, n=3) or ["ternary", "planes4-g32", "int8-g32"]
        raise FormatError(f"expected the name of a format, got {name}; did you mean {', '.join(near)}?")
    return every[name]


def _every() -> dict[str, Format]:
    """Make every combination the constructors can spell, `zero` at its default."""
    found: dict[str, Format] = {}
    for group, dtype in itertools.product(AXES["group_size"], AXES["scale_dtype"]):
        assert isinstance(group, int) and isinstance(dtype, str)
        for activation in {0, group}:
            axes = {"scale_dtype": dtype, "activation_group": activation}
            made = [ternary(group, **axes), int8(group, **axes)]  # type: ignore[arg-type]
            for bits, offset in itertools.product(PLANE_BITS, AXES["offset"]):
                made.append(planes(bits, group, offset=str(offset), **axes))  # type: ignore[arg-type]
            found |= {form.name: form for form in made}
    return found


STATED_AXES = ("alphabet", "bits", "group_size", "zero", "scale_dtype", "offset", "activation_group")


def axes_of(format: Format) -> dict[str, object]:
    """Say a format by its axes, as a file may hold it: `from_axes` makes it again."""
    return {axis: getattr(format, axis) for axis in STATED_AXES}


def from_axes(stated: Mapping[str, object]) -> Format:
    """Make the format whose axes somebody states, of whatever type: nothing in it is believed.

    raises   FormatError   an axis missing, one too many, a value it has not, or values that contradict each other
    """
    if set(stated) != set(STATED_AXES):
        raise FormatError(f"expected the axes {', '.join(STATED_AXES)} of a format, got {len(stated)} others; "
                          "write the file again")  # fmt: skip
    known = {axis: _known(axis, stated[axis]) for axis in STATED_AXES}
    group, always = known["group_size"], {axis: known[axis] for axis in ("scale_dtype", "activation_group")}
    if known["alphabet"] == "trit":
        made = ternary(group, **always)
    elif known["bits"] == 8:
        made = int8(group, **always)
    else:
        made = planes(known["bits"], group, zero=known["zero"], offset=known["offset"], **always)
    if axes_of(made) != dict(stated):
        raise FormatError(f"expected axes that agree, as those of {made.name} do, got others; write the file again")
    return made


def _known(axis: str, value: object) -> Any:
    """Return the axis's own value that equals `value`, types included: True is not 1 bit."""
    values = {"zero": tuple(range(256)), "activation_group": AXES["group_size"]}.get(axis) or AXES[axis]
    found = [known for known in values if type(known) is type(value) and known == value]
    if not found:
        few = ", ".join(map(str, values[:8]))
        raise FormatError(f"format: {axis}: expected one of {few}, got {str(value)[:40]!r}; write the file again")
    return found[0]


def describe(name: str) -> str:
    """Draw a format: its size, its value, its bytes, and where it comes from.

    raises   FormatError   no format has this name
    """
    return draw(find(name), SOURCES.get(name, "a combination of axes, not in the table of published formats"))
