"""What a format is: one choice on each axis of a single storage model.

The axes do not depend on one another, save where `_RULES` says so.  Kernels, files and quantisers ask a format for its
axes and never for its name, so a format nobody has thought of yet works when its axes do.

    W[n, k] = sum over t of scales[n, g * terms + t] * (level(codes[n, t, k]) - zero - zeros[n, g])  +  mins[n, g]

    g = k // group_size,  t = 0 .. terms - 1,  level(c) = c or an entry of a table
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lutra.errors import FormatError
from lutra.formats import packing, scales
from lutra.formats.tables import FLOATS, TABLES, float_values, table_bits

# axis -> the values that exist.  A new value is a word here, its meaning in integer.py, and a kernel.
AXES: dict[str, tuple[object, ...]] = {
    "storage": ("planes", "bytes"),
    "bits": (1, 2, 3, 4, 5, 6, 7, 8),
    "alphabet": ("uniform", "trit"),
    "levels": ("uniform", *TABLES, *FLOATS),
    "terms": (1, 2, 3, 4),
    "group_size": (0, 16, 32, 64, 128, 256),
    "scale_kind": ("float", "two-level"),
    "scale_dtype": (*scales.SINGLE, *scales.LOWER),
    "super_dtype": ("none", *scales.UPPER),
    "super_group": (0, 256),
    "offset": ("none", "zeros", "mins"),
}


@dataclass(frozen=True)
class Format:
    """A row of the catalogue.  Make one with `catalog.planes`, `ternary`, `table`, `int8` or `find`.

    name              "ternary", "planes4-g32-mins", ...: the axes, spelled by spelling.py
    storage           "planes": codes of 1-7 bits, split or kept as packed words; "bytes": codes of 8 bits
    bits              width of one code
    group_size        weights along K that share their scales; 0 = the whole row
    zero              constant taken from every code: 1 for ternary, 8 for symmetric 4 bits, 128 for int8; 0 for tables
    scale_dtype       how a scale (and a min) is stored, of scales.DTYPES
    offset            "none" | "zeros": uint8 [N, G] in units of codes | "mins": [N, G], added to the value
    activation_group  activations that share one int8 scale: 0 = all of a token, else group_size
    alphabet          "uniform": every code has a meaning; "trit": only 0, 1, 2 (of 2 bits)
    levels            "uniform": a code is worth itself; else a table of tables.py, or one of its floats, and then
                      activations stay f32
    terms             sets of codes, each with a scale of its own in every group, that add up to the weight
    scale_kind        "float": a scale is one number; "two-level": scales * super_scales, mins * super_mins
    super_dtype       of two levels, the type of the upper one; else "none"
    super_group       weights along K that share an upper scale; 0 = the whole row

    raises   FormatError   a value no axis has, or two that contradict each other
    """

    name: str
    storage: str
    bits: int
    group_size: int
    zero: int
    scale_dtype: str
    offset: str
    activation_group: int
    alphabet: str = "uniform"
    levels: str = "uniform"
    terms: int = 1
    scale_kind: str = "float"
    super_dtype: str = "none"
    super_group: int = 0

    def __post_init__(self) -> None:
        for axis, values in AXES.items():
            if getattr(self, axis) not in values:
                raise self._refusal(axis, f"one of {', '.join(map(str, values))}")
        for axis, holds, expected in _RULES:
            if not holds(self):
                raise self._refusal(axis, expected(self))

    def _refusal(self, axis: str, expected: str) -> FormatError:
        return FormatError(f"format {self.name}: {axis}: expected {expected}, got {getattr(self, axis)}; "
                           "choose a format that `lutra inspect format` lists")  # fmt: skip

    @property
    def num_codes(self) -> int:
        """Codes are 0 .. num_codes - 1."""
        return 3 if self.alphabet == "trit" else 2**self.bits

    @property
    def is_float(self) -> bool:
        """Whether levels are floats: they multiply f32 activations, as reduce.dense_spec of QTensor.dequantize says."""
        return self.levels in FLOATS

    @property
    def level_values(self) -> np.ndarray:
        """What each code is worth before scale and zeros, int16 [2**bits], or f32: level(code) - zero."""
        if self.is_float:
            return float_values(self.levels)
        if self.levels == "uniform":
            return np.arange(2**self.bits, dtype=np.int16) - np.int16(self.zero)
        return TABLES[self.levels].astype(np.int16)

    def worth(self, codes: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
        """Return level(code) - zero for every code: an array of the shape of codes, of a float dtype."""
        if self.levels != "uniform":
            return np.asarray(self.level_values.astype(dtype)[codes])
        values: np.ndarray = codes.astype(dtype)
        np.subtract(values, dtype.type(self.zero), out=values)
        return values

    @property
    def is_plain(self) -> bool:
        """Whether this is one set of evenly spaced codes with a scale of f16 or f32 each."""
        return self.levels == "uniform" and self.terms == 1 and self.scale_dtype in ("f16", "f32")

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy type of scales and mins."""
        return scales.DTYPES[self.scale_dtype]

    def padded_k(self, k: int) -> int:
        """Columns a row of k weights is stored with: whole blocks of 32, whole groups."""
        return packing.padded_k(k, self.group_size)

    def num_groups(self, k: int) -> int:
        """G: groups of a row of k weights, those of padding included."""
        return self.padded_k(k) // self.group_size if self.group_size else 1

    def num_supers(self, k: int) -> int:
        """S: upper scales of a row of k weights."""
        return -(-self.padded_k(k) // self.super_group) if self.super_group else 1

    def row_bytes(self, k: int) -> int:
        """Bytes of one packed row of k weights, scales not included."""
        return self.padded_k(k) * self.terms * self.bits // 8

    def beside(self, k: int) -> dict[str, tuple[str, int]]:
        """What a row of k weights has beside its codes: name of the array -> (type, columns), in QTensor's order."""
        groups, supers = self.num_groups(k), self.num_supers(k)
        found = {"scales": (self.scale_dtype, groups * self.terms)}
        if self.offset != "none":
            found[self.offset] = ("u8" if self.offset == "zeros" else self.scale_dtype, groups)
        if self.scale_kind == "two-level":
            found["super_scales"] = (self.super_dtype, supers)
            if self.offset == "mins":
                found["super_mins"] = (self.super_dtype, supers)
        return found

    def bits_per_weight(self, k: int) -> float:
        """Bits stored per weight in rows of k weights: codes, scales, offsets and padding."""
        sidecar_bytes = sum(scales.DTYPES[dtype].itemsize * columns for dtype, columns in self.beside(k).values())
        return 8 * (self.row_bytes(k) + sidecar_bytes) / k


def _is_two_level(form: Format) -> bool:
    return form.scale_kind == "two-level"


def _has_table(form: Format) -> bool:
    return form.levels != "uniform"


# axis, what must hold of a format whose values exist, and the expectation in words
_RULES: tuple[tuple[str, Callable[[Format], bool], Callable[[Format], str]], ...] = (
    ("storage", lambda f: (f.storage == "bytes") == (f.bits == 8), lambda f: "bytes for 8 bits, planes for fewer"),
    ("zero", lambda f: 0 <= f.zero < 2**f.bits, lambda f: f"a code, 0 to {2**f.bits - 1}"),
    ("activation_group", lambda f: f.activation_group in (0, f.group_size), lambda f: f"0 or {f.group_size}"),
    ("alphabet", lambda f: f.alphabet == "uniform" or f.bits == 2, lambda f: "uniform unless codes have 2 bits"),
    ("zero", lambda f: f.alphabet == "uniform" or f.zero == 1, lambda f: "1 for trits"),
    ("offset", lambda f: f.alphabet == "uniform" or f.offset != "zeros", lambda f: "none or mins for trits"),
    ("alphabet", lambda f: f.alphabet == "uniform" or not _has_table(f), lambda f: "uniform where levels are a table"),
    ("bits", lambda f: not _has_table(f) or f.bits == table_bits(f.levels), lambda f: f"{table_bits(f.levels)}, as "
     f"the table {f.levels} has"),
    ("zero", lambda f: not _has_table(f) or f.zero == 0, lambda f: "0 where levels are a table"),
    ("offset", lambda f: not _has_table(f) or f.offset != "zeros", lambda f: "none or mins where levels are a table"),
    ("offset", lambda f: not f.is_float or f.offset == "none", lambda f: "none where levels are floats"),
    ("scale_kind", lambda f: not f.is_float or f.scale_kind == "float", lambda f: "float where levels are floats"),
    ("activation_group", lambda f: not f.is_float or f.activation_group == f.group_size, lambda f: f"{f.group_size}, "
     "which nothing reads where levels are floats"),
    ("terms", lambda f: f.terms == 1 or f.storage == "planes", lambda f: "1 for bytes"),
    ("offset", lambda f: f.terms == 1 or f.offset != "zeros", lambda f: "none or mins with several terms"),
    ("group_size", lambda f: f.terms == 1 or f.group_size != 16, lambda f: "whole blocks of 32 with several terms"),
    ("scale_dtype", lambda f: f.scale_dtype in (scales.LOWER if _is_two_level(f) else scales.SINGLE),
     lambda f: f"one of {', '.join(scales.LOWER if _is_two_level(f) else scales.SINGLE)} for {f.scale_kind} scales"),
    ("super_dtype", lambda f: _is_two_level(f) == (f.super_dtype != "none"), lambda f: "f16 or f32 for two-level "
     "scales, none for others"),
    ("super_group", lambda f: _is_two_level(f) or f.super_group == 0, lambda f: "0 unless scales are two-level"),
    ("group_size", lambda f: not _is_two_level(f) or f.group_size > 0, lambda f: "groups for two-level scales"),
    ("offset", lambda f: f.scale_dtype not in ("e8m0", "e4m3") or f.offset != "mins", lambda f: "none or zeros with "
     f"{f.scale_dtype} scales, which have no sign or no room for a minimum"),
)  # fmt: skip
