"""The formats lutra knows: constructors for every combination of axes, and a table of those somebody publishes.

Names spell the axes: spelling.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lutra.errors import FormatError
from lutra.formats import aliases
from lutra.formats.format import AXES, Format
from lutra.formats.picture import draw
from lutra.formats.spelling import USUAL_SUPER_GROUP, parse, spell, usual_scale_dtype, usual_zero
from lutra.formats.tables import table_bits


def planes(bits: int, group_size: int, *, zero: int | None = None, scale_dtype: str | None = None, offset: str = "none",
           activation_group: int | None = None, terms: int = 1, super_dtype: str | None = None,
           super_group: int = USUAL_SUPER_GROUP) -> Format:  # fmt: skip
    """Codes of 1 to 7 bits on a uniform grid.

    zero              default: the middle code 2**(bits - 1) if there is no offset, else 0
    scale_dtype       default: f16 for groups, f32 for rows
    activation_group  default: group_size
    terms             code sets that add up, each with a scale of its own
    super_dtype       "f16" or "f32" makes scales two-level: scale_dtype is then u8, i8 or e4m3
    super_group       weights that share an upper scale, 256 or 0 for the row
    """
    return _format(storage="planes", bits=bits, zero=usual_zero(bits, offset) if zero is None else zero, offset=offset,
                   group_size=group_size, scale_dtype=scale_dtype, activation_group=activation_group, terms=terms,
                   super_dtype=super_dtype, super_group=super_group)  # fmt: skip


def ternary(group_size: int = 0, **others: Any) -> Format:
    """Weights -1, 0, +1 as codes 0, 1, 2 of 2 bits.

    group_size   default: one f32 scale per row, activations per token, as BitNet has it
    others       as for planes, but no zero
    """
    return _format(storage="planes", bits=2, zero=1, alphabet="trit", group_size=group_size, **others)


def table(name: str, group_size: int, **others: Any) -> Format:
    """Codes whose levels a table says.

    name     a row of tables.TABLES or tables.FLOATS
    others   as for planes, but no zero
    raises   FormatError   no such table
    """
    if name not in AXES["levels"] or name == "uniform":
        tables = ", ".join(str(known) for known in AXES["levels"][1:])
        raise FormatError(f"expected a table of {tables}, got {name[:40]!r}; add it to lutra/formats/tables.py")
    bits = table_bits(name)
    storage = "bytes" if bits == 8 else "planes"
    return _format(storage=storage, bits=bits, zero=0, levels=name, group_size=group_size, **others)


def int8(group_size: int, *, zero: int | None = None, offset: str = "none", **others: Any) -> Format:
    """Bytes; without an offset they are signed, stored with 128 added: code 128 is the value 0.

    The arguments are those of planes, but terms.
    """
    zero = usual_zero(8, offset) if zero is None else zero
    return _format(storage="bytes", bits=8, zero=zero, offset=offset, group_size=group_size, **others)


def k_quant(bits: int, group_size: int, scale_dtype: str) -> Format:
    """GGUF's: scales have a scale too, one for 256 weights; unsigned ones, u8, have mins beside them."""
    offset = "mins" if scale_dtype == "u8" else "none"
    return planes(bits, group_size, scale_dtype=scale_dtype, super_dtype="f16", offset=offset)


def _format(*, group_size: int, scale_dtype: str | None = None, activation_group: int | None = None,
            super_dtype: str | None = None, super_group: int = USUAL_SUPER_GROUP, **axes: Any) -> Format:  # fmt: skip
    """Fill in the defaults that all constructors share, and spell the name."""
    every: dict[str, Any] = {"alphabet": "uniform", "levels": "uniform", "terms": 1, "offset": "none"} | axes
    every |= {
        "group_size": group_size,
        "scale_dtype": usual_scale_dtype(group_size) if scale_dtype is None else scale_dtype,
        "activation_group": group_size if activation_group is None else activation_group,
        "super_dtype": "none" if super_dtype is None else super_dtype,
        "super_group": 0 if super_dtype is None else super_group,
        "scale_kind": "float" if super_dtype is None else "two-level",
    }
    return Format(name=spell(every), **every)


@dataclass(frozen=True)
class Row:
    """A format that models are published in, or a quantiser of ours writes, and where it is defined."""

    format: Format
    source: str


ROWS: tuple[Row, ...] = (
    Row(ternary(), "BitNet b1.58, arXiv 2402.17764, section 2; TriLM, arXiv 2407.12327"),
    Row(ternary(64), "ternary with short groups, as GGUF Q2_0 has them, without its fourth level"),
    Row(ternary(128), "Ternary-Bonsai, prism-ml: one f16 scale per 128 weights"),
    Row(ternary(128, terms=2), "PTQTP, arXiv 2509.16989: two trit planes, a scale each"),
    Row(ternary(256, terms=2), "PTQTP in the groups of TQ1_0"),
    Row(
        ternary(32, offset="mins", scale_dtype="i8", super_dtype="f32"),
        "GGUF IQ1_S re-coded: a scale and its delta of 1/8 per 32",
    ),
    Row(ternary(256), "GGUF TQ1_0 and TQ2_0: ggml, src/ggml-common.h, block_tq1_0 and block_tq2_0"),
    Row(planes(1, 0, offset="mins"), "BitNet with 1 bit, arXiv 2310.11453, section 2.1: scale 2 a, min -a"),
    Row(planes(1, 32, offset="mins"), "1 bit, smallest usual group; BCQ with one plane, LUT-GEMM, arXiv 2206.09557"),
    Row(planes(1, 128, offset="mins"), "GGUF Q1_0: ggml, src/ggml-common.h, block_q1_0: scale 2 d, min -d"),
    Row(k_quant(2, 16, "u8"), "GGUF Q2_K: ggml, src/ggml-common.h, block_q2_K"),
    Row(planes(2, 64, zero=1), "GGUF Q2_0: levels -1 to 2"),
    Row(planes(2, 64, offset="mins"), "round to nearest, asymmetric; HQQ, mobiusml.github.io/hqq_blog"),
    Row(planes(2, 128, offset="zeros"), "GPTQ, arXiv 2210.17323; EfficientQAT, arXiv 2407.11062"),
    Row(planes(2, 0), "round to nearest, one scale per row"),
    Row(k_quant(3, 16, "i8"), "GGUF Q3_K: block_q3_K, scales less 32"),
    Row(planes(3, 64, offset="mins"), "round to nearest, asymmetric; HQQ, mobiusml.github.io/hqq_blog"),
    Row(planes(3, 128, offset="zeros"), "GPTQ, arXiv 2210.17323; AutoRound, arXiv 2309.05516"),
    Row(planes(3, 0), "round to nearest, one scale per row"),
    Row(planes(4, 32), "GGUF Q4_0: ggml, src/ggml-common.h, block_q4_0"),
    Row(planes(4, 32, offset="mins"), "GGUF Q4_1: ggml, src/ggml-common.h, block_q4_1"),
    Row(k_quant(4, 32, "u8"), "GGUF Q4_K: block_q4_K, the upper min negated"),
    Row(planes(4, 64, offset="mins"), "round to nearest, asymmetric; HQQ, mobiusml.github.io/hqq_blog"),
    Row(planes(4, 128, offset="zeros"), "GPTQ, arXiv 2210.17323; AWQ, arXiv 2306.00978; AutoRound, arXiv 2309.05516"),
    Row(planes(4, 128, scale_dtype="bf16"), "compressed-tensors, pack-quantized of a bf16 model"),
    Row(planes(4, 32, scale_dtype="e8m0"), "MXINT4: INT vs FP, arXiv 2510.25602, section 3; codes 1 to 15"),
    Row(planes(4, 16, scale_dtype="e4m3", super_dtype="f32", super_group=0), "NVINT4: the same paper; codes 1 to 15"),
    Row(planes(4, 256), "round to nearest, long groups"),
    Row(planes(4, 0), "round to nearest, one scale per row"),
    Row(planes(5, 32), "GGUF Q5_0: ggml, src/ggml-common.h, block_q5_0"),
    Row(planes(5, 32, offset="mins"), "GGUF Q5_1: ggml, src/ggml-common.h, block_q5_1"),
    Row(k_quant(5, 32, "u8"), "GGUF Q5_K: block_q5_K, the upper min negated"),
    Row(planes(5, 128, offset="zeros"), "GPTQModel, format gptq_p: 5 = 4 + 1 bits"),
    Row(k_quant(6, 16, "i8"), "GGUF Q6_K: block_q6_K"),
    Row(planes(6, 128, offset="zeros"), "GPTQModel, format gptq_p: 6 = 4 + 2 bits"),
    Row(planes(6, 0), "round to nearest, one scale per row"),
    Row(planes(7, 128, offset="zeros"), "GPTQModel, format gptq_p: 7 = 4 + 2 + 1 bits"),
    Row(planes(7, 0), "round to nearest, one scale per row"),
    Row(int8(32), "GGUF Q8_0: ggml, src/ggml-common.h, block_q8_0"),
    Row(int8(32, scale_dtype="e8m0"), "MXINT8: OCP Microscaling Formats 1.0, section 5.3.4; the scale takes out 64"),
    Row(int8(128, offset="zeros"), "GPTQ with 8 bits, arXiv 2210.17323"),
    Row(int8(0), "round to nearest, one scale per output channel: LLM.int8(), arXiv 2208.07339, section 2.1"),
    *(
        Row(planes(1, group, terms=terms, offset="mins"), f"HLQ with {terms} planes (ELUTQ), and BCQ with an offset")
        for terms in (2, 3, 4)
        for group in (64, 128)
    ),
    *(
        Row(table("sign", 128, terms=terms), f"BCQ {terms}: LUT-GEMM, arXiv 2206.09557; ShiftAddLLM, arXiv 2406.05981")
        for terms in (1, 2, 3, 4)
    ),
    Row(table("iq4nl", 32), "GGUF IQ4_NL: ggml, src/ggml-common.h, block_iq4_nl"),
    Row(table("iq4nl", 32, scale_dtype="i8", super_dtype="f16"), "GGUF IQ4_XS: block_iq4_xs, scales less 32"),
    Row(table("e2m1", 32, scale_dtype="e8m0"), "MXFP4: OCP Microscaling Formats 1.0, section 5.3.3; GGUF MXFP4"),
    Row(
        table("e2m1", 16, scale_dtype="e4m3", super_dtype="f32", super_group=0),
        "NVFP4: NVIDIA ModelOpt; compressed-tensors nvfp4-pack-quantized",
    ),
    Row(table("e2m1", 64), "FP4 e2m1 with an f16 scale; ZeroQuant-FP, arXiv 2307.09782"),
    Row(table("e2m3", 32, scale_dtype="e8m0"), "MXFP6 e2m3: OCP Microscaling Formats 1.0, section 5.3.2"),
    Row(table("nf4", 64), "NF4, QLoRA, arXiv 2305.14314, with levels rounded to 1/127"),
    Row(table("bitmod3", 128), "BitMoD FP3, arXiv 2411.11745: the special value of a group by its codes, in 4 bits"),
    Row(table("bitmod4", 128), "BitMoD FP4, arXiv 2411.11745: the special value of a group by its codes, in 5 bits"),
    Row(table("iq1", 16, scale_dtype="u8", super_dtype="f32"), "GGUF IQ1_S and IQ1_M re-coded, deltas in the levels"),
    Row(
        table("iq2", 16, scale_dtype="u8", super_dtype="f32"),
        "GGUF IQ2_XS and IQ2_S re-coded: scale 2 s + 1, upper d / 8",
    ),
    Row(table("iq2", 32, scale_dtype="u8", super_dtype="f32"), "GGUF IQ2_XXS re-coded: scale 2 s + 1, upper d / 8"),
    Row(table("iq3xxs", 32, scale_dtype="u8", super_dtype="f32"), "GGUF IQ3_XXS re-coded: scale 2 s + 1, upper d / 4"),
    Row(table("iq3s", 32, scale_dtype="u8", super_dtype="f16"), "GGUF IQ3_S re-coded: scale 2 s + 1"),
)
# The same of levels that are floats, which integer.py does not define
FLOAT_ROWS: tuple[Row, ...] = (
    Row(table("e4m3", 0), "FP8, arXiv 2209.05433: NVIDIA ModelOpt; compressed-tensors float-quantized"),
    Row(table("e4m3", 0, scale_dtype="bf16"), "compressed-tensors float-quantized of a bf16 model"),
    Row(table("e4m3", 128, scale_dtype="f32"), "FP8 in blocks of 128 x 128: DeepSeek-V3, arXiv 2412.19437"),
    Row(table("e4m3", 32, scale_dtype="e8m0"), "MXFP8: OCP Microscaling Formats 1.0, section 5.3.1"),
    Row(table("e5m2", 0), "FP8, arXiv 2209.05433, the type of the wider range"),
)
FORMATS: dict[str, Format] = {row.format.name: row.format for row in ROWS}
FLOAT_FORMATS: dict[str, Format] = {row.format.name: row.format for row in FLOAT_ROWS}
SOURCES: dict[str, str] = {row.format.name: row.source for row in (*ROWS, *FLOAT_ROWS)}


def find(name: str) -> Format:
    """Return the format of a name: a row of the tables, any other combination of axes, or what aliases.py says.

    raises   FormatError   no combination has this name
    """
    name = aliases.NAMES.get(name.upper(), name)
    if name in FORMATS:
        return FORMATS[name]
    made = _spelled(name)
    if made is None or made.name != name:
        said = aliases.advice(name) or f"did you mean {', '.join(_near(name))}?"
        raise FormatError(f"expected the name of a format, got {name[:80]}; {said}")
    return made


def _near(name: str) -> list[str]:
    """Names like this one; else those with its number of bits; else a few of all."""
    known = {spelled.lower(): spelled for spelled in (*SOURCES, *aliases.NAMES)}
    near = [known[found] for found in difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.7)]
    bits = next((digit for digit in name if digit in "1234567"), None)
    usual = {None: "ternary", "1": "planes1-g128-mins"}.get(bits, f"planes{bits}-g64-mins")
    return near or [usual, "planes4-g32", "int8-g32"]


def _spelled(name: str) -> Format | None:
    """The format that a name's words say, if there is one."""
    parts = parse(name)
    if parts is None:
        return None
    codes, group, told = parts
    try:
        if codes.startswith("planes"):
            return planes(int(codes.removeprefix("planes")), group, **told)
        if codes in ("ternary", "int8"):
            return ternary(group, **told) if codes == "ternary" else int8(group, **told)
        return table(codes, group, **told)
    except (FormatError, TypeError):  # values no axis has; an axis that int8 or ternary lacks
        return None


STATED_AXES = ("alphabet", "bits", "group_size", "zero", "scale_dtype", "offset", "activation_group")
UNSTATED = {"levels": "uniform", "terms": 1, "super_dtype": "none", "super_group": 0}  # where nothing else is said


def axes_of(format: Format) -> dict[str, object]:
    """Say a format by its axes, as a file may hold it: `from_axes` makes it again."""
    stated = {axis: getattr(format, axis) for axis in STATED_AXES}
    others = {axis: getattr(format, axis) for axis in UNSTATED}
    return stated | {axis: value for axis, value in others.items() if value != UNSTATED[axis]}


def from_axes(stated: Mapping[str, object]) -> Format:
    """Make the format whose axes somebody states, of whatever type: nothing in it is believed.

    raises   FormatError   an axis missing, one too many, a value it has not, or values that contradict each other
    """
    if not set(STATED_AXES) <= set(stated) <= {*STATED_AXES, *UNSTATED}:
        raise FormatError(f"expected the axes {', '.join(STATED_AXES)} of a format, got {len(stated)} others; "
                          "write the file again")  # fmt: skip
    axes = {axis: _known(axis, value) for axis, value in {**UNSTATED, **stated}.items()}
    storage = "bytes" if axes["bits"] == 8 else "planes"
    scale_kind = "float" if axes["super_dtype"] == "none" else "two-level"
    return Format(name=spell(axes), storage=storage, scale_kind=scale_kind, **axes)


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
    form = find(name)
    return draw(form, SOURCES.get(form.name, "a combination of axes, not in the table of published formats"))
