"""Names of formats: the axes spelled, and only those that differ from the usual.

    planes1x3 -g128 -zero1 -mins -u8xf16 -row -token
    |      |   |     |      |     |      |     `- one activation scale per token, though weights have groups
    |      |   |     |      |     |      `- of two-level scales, the upper one is shared by the row, not by 256 weights
    |      |   |     |      |     `- type of scales and mins, if not f16 for groups, f32 for rows; two types: two levels
    |      |   |     |      `- offset: zeros or mins
    |      |   |     `- the constant taken from codes, if not the middle one (with an offset: if not 0)
    |      |   `- group size, or `row`; ternary needs none for rows
    |      `- terms, if there are several
    `- codes: planes1 .. planes7, ternary, int8, or a table or float of tables.py
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lutra.formats import scales
from lutra.formats.tables import FLOATS, TABLES

USUAL_SUPER_GROUP = 256
_SCALES = [*scales.SINGLE, *(f"{lower}x{upper}" for lower in scales.LOWER for upper in scales.UPPER)]
_NAME = re.compile(
    rf"(?P<codes>planes[1-7]|ternary|int8|{'|'.join([*TABLES, *FLOATS])})(?:x(?P<terms>[2-4]))?"
    r"(?:-(?P<group>g[0-9]{2,3}|row))?(?:-zero(?P<zero>[0-9]{1,3}))?(?:-(?P<offset>zeros|mins))?"
    rf"(?:-(?P<scale>{'|'.join(_SCALES)}))?(?P<per_row>-row)?(?P<token>-token)?"
)


def usual_scale_dtype(group_size: int) -> str:
    return "f16" if group_size else "f32"


def usual_zero(bits: int, offset: str) -> int:
    """The middle code, or none where an offset says where the codes lie."""
    return 2 ** (bits - 1) if offset == "none" else 0


def spell(axes: Mapping[str, Any]) -> str:
    """Return the name of a format, given its axes by the names that Format gives them."""
    group = axes["group_size"]
    codes = _codes(axes) + (f"x{axes['terms']}" if axes["terms"] > 1 else "")
    words = [codes] if codes.startswith("ternary") and not group else [codes, f"g{group}" if group else "row"]
    is_counted = axes["levels"] == "uniform" and axes["alphabet"] == "uniform"
    if is_counted and axes["zero"] != usual_zero(axes["bits"], axes["offset"]):
        words.append(f"zero{axes['zero']}")
    if axes["offset"] != "none":
        words.append(axes["offset"])
    words += _scale_words(axes)
    if axes["activation_group"] != group:
        words.append("token")
    return "-".join(words)


def _codes(axes: Mapping[str, Any]) -> str:
    if axes["alphabet"] == "trit":
        return "ternary"
    if axes["levels"] != "uniform":
        return str(axes["levels"])
    return "int8" if axes["bits"] == 8 else f"planes{axes['bits']}"


def _scale_words(axes: Mapping[str, Any]) -> list[str]:
    if axes["super_dtype"] != "none":
        types = f"{axes['scale_dtype']}x{axes['super_dtype']}"
        return [types] if axes["super_group"] == USUAL_SUPER_GROUP else [types, "row"]
    return [] if axes["scale_dtype"] == usual_scale_dtype(axes["group_size"]) else [axes["scale_dtype"]]


def parse(name: str) -> tuple[str, int, dict[str, Any]] | None:
    """Take a name apart: the codes, the group size, and what a constructor of catalog.py is told besides.

    returns  None where no format is spelled like this; a name that is not None may still say what no format has

    >>> parse("planes4-g32-mins-u8xf16")
    ('planes4', 32, {'offset': 'mins', 'scale_dtype': 'u8', 'super_dtype': 'f16', 'super_group': 256})
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    group = int(found["group"][1:]) if found["group"] not in (None, "row") else 0
    told: dict[str, Any] = {}
    if found["terms"]:
        told["terms"] = int(found["terms"])
    if found["zero"]:
        told["zero"] = int(found["zero"])
    if found["offset"]:
        told["offset"] = found["offset"]
    if found["scale"]:
        told["scale_dtype"], _, upper = found["scale"].partition("x")
        if upper:
            told |= {"super_dtype": upper, "super_group": 0 if found["per_row"] else USUAL_SUPER_GROUP}
    if found["token"]:
        told["activation_group"] = 0
    return found["codes"], group, told
