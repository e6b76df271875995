"""A quantised matrix: packed codes, their scales, and the format that says what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lutra.errors import FormatError
from lutra.formats import packing
from lutra.formats import scales as scale_types
from lutra.formats.format import Format

# Weights that one int32 may sum: 65536 * 255 * 127 < 2**31, for any code and any int8 activation (never -128).
MAX_GROUP_WIDTH = 1 << 16
BESIDE = ("scales", "zeros", "mins", "super_scales", "super_mins")  # arrays there may be besides the codes
ARRAYS = ("packed", *BESIDE)


@dataclass(frozen=True, eq=False)
class QTensor:
    """The weight of y = x @ W.T, rows as kernels read them.

    format         Format
    shape          (N, K)                    true sizes; rows are stored with format.padded_k(K) columns
    packed         uint8 [N, row_bytes]      the packed order of packing.py; of several terms, group by group one after
                                             the other: columns [g][term][k in group]
    scales         format.dtype [N, G * T]   T terms of a group side by side; G = format.num_groups(K)
    zeros          uint8 [N, G] or None      0 .. 2**bits, in units of codes
    mins           format.dtype [N, G] or None
    super_scales   f16 | f32 [N, S] or None  what scales are multiplied with; S = format.num_supers(K)
    super_mins     f16 | f32 [N, S] or None  what mins are multiplied with

    raises   FormatError   another shape or type; a code the format does not have; a scale that is not finite
    """

    format: Format
    shape: tuple[int, int]
    packed: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None = None
    mins: np.ndarray | None = None
    super_scales: np.ndarray | None = None
    super_mins: np.ndarray | None = None

    def __post_init__(self) -> None:
        n, k = self.shape
        form = self.format
        if n < 1 or k < 1:
            raise FormatError(f"{form.name}: expected at least one row and one column, got shape ({n}, {k})")
        width = form.group_size or self.padded_k
        if width > MAX_GROUP_WIDTH:
            raise FormatError(f"{form.name}: expected at most {MAX_GROUP_WIDTH} weights to share a scale, got K={k}; "
                              "use a format with groups")  # fmt: skip
        beside = form.beside(k)
        _check(form, "packed", self.packed, "u8", (n, form.row_bytes(k)))
        for name in BESIDE:
            _check_beside(form, name, getattr(self, name), beside.get(name), n)
        self._check_products()
        if form.is_float:
            self._check_floats()
        if self.zeros is not None and int(self.zeros.max()) > 2**form.bits:
            raise FormatError(f"{form.name}: zeros: expected at most {2**form.bits}, got {int(self.zeros.max())}; "
                              "give zeros in units of codes")  # fmt: skip
        if form.alphabet == "trit" and self._has_code_3():
            raise FormatError(f"{form.name}: expected ternary codes 0 to 2 (value + 1), got 3; "
                              "the weight is damaged, or needs planes of 2 bits")  # fmt: skip

    def _has_code_3(self) -> bool:
        words = np.ascontiguousarray(self.packed).view(np.uint32)
        return any(packing.has_code_3(words[rows]) for rows in packing.row_blocks(*self.packed.shape))

    def _check_floats(self) -> None:
        """Every code a number, and every product with its scale one that f32 holds."""
        end = int(np.isfinite(self.format.level_values[:128]).sum())  # above are the codes of no number
        if not all((self.packed[rows] & 127).max() < end for rows in packing.row_blocks(*self.packed.shape)):
            raise FormatError(f"{self.format.name}: expected codes of numbers, got inf or nan; the weight is damaged")
        if not scale_types.has_finite_products(self.format.levels, self.scale_values()):
            raise FormatError(f"{self.format.name}: scales: expected finite products with {self.format.levels}, got up "
                              f"to {np.abs(self.scale_values()).max():g}; the weight is damaged")  # fmt: skip

    def _check_products(self) -> None:
        """Two levels that are finite each may multiply to what is not."""
        for name, upper in (("super_scales", self.super_scales), ("super_mins", self.super_mins)):
            if upper is not None and not scale_types.has_finite_products(self.format.scale_dtype, upper):
                raise FormatError(f"{self.format.name}: {name}: expected finite products with what is below them, got "
                                  f"up to {np.abs(upper).max():g}; the weight is damaged")  # fmt: skip

    @classmethod
    def from_codes(cls, format: Format, codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None = None,
                   mins: np.ndarray | None = None, super_scales: np.ndarray | None = None,
                   super_mins: np.ndarray | None = None) -> QTensor:  # fmt: skip
        """Pack codes; groups that are only padding get scale, zero and min 0 (e8m0: its smallest, on activations 0).

        codes    uint8 [N, K], or [N, T, K] where the format has T > 1 terms    0 .. format.num_codes - 1
        scales   format.dtype [N, G * T]                G may leave out groups that are only padding; so may zeros, mins
        raises   FormatError                            as the class does
        """
        expected = (len(codes), format.terms, codes.shape[-1])[:: 1 if format.terms > 1 else 2]
        if codes.shape != expected or codes.dtype != np.uint8:
            sizes = "[N, K]" if format.terms == 1 else f"[N, {format.terms}, K]"
            raise FormatError(f"{format.name}: codes: expected uint8 {sizes}, got {_kind(codes)}; give codes as bytes")
        k = codes.shape[-1]
        columns = _side_by_side(format, codes) if format.terms > 1 else codes
        packed = packing.pack(columns, format.bits, format.padded_k(k) * format.terms, format.zero)
        wide = _with_padding(format, k, scales, format.terms)
        assert wide is not None
        return cls(format, (len(codes), k), packed, wide, _with_padding(format, k, zeros),
                   _with_padding(format, k, mins), super_scales, super_mins)  # fmt: skip

    @property
    def padded_k(self) -> int:
        """Columns stored, padding included."""
        return self.format.padded_k(self.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and offsets."""
        return sum(part.nbytes for part in self._arrays().values() if part is not None)

    def _arrays(self) -> dict[str, np.ndarray | None]:
        return {name: getattr(self, name) for name in ARRAYS}

    def codes(self) -> np.ndarray:
        """Return the codes, uint8 [N, K], padding left out; [N, T, K] where the format has T > 1 terms."""
        form, k = self.format, self.shape[1]
        if form.terms == 1:
            return packing.unpack(self.packed, form.bits, k)
        columns = packing.unpack(self.packed, form.bits, self.padded_k * form.terms)
        groups = columns.reshape(len(columns), form.num_groups(k), form.terms, -1)
        return np.ascontiguousarray(groups.swapaxes(1, 2).reshape(len(columns), form.terms, -1)[:, :, :k])

    def scale_values(self) -> np.ndarray:
        """Return the scales, f32 [N, G * T]; of two levels, their product, rounded once."""
        return self._widened(self.scales, self.super_scales, self.format.terms)

    def min_values(self) -> np.ndarray:
        """Return the mins, f32 [N, G]; of two levels, their product, rounded once."""
        assert self.mins is not None
        return self._widened(self.mins, self.super_mins, 1)

    def _widened(self, stored: np.ndarray, upper: np.ndarray | None, terms: int) -> np.ndarray:
        values = scale_types.widen(self.format.scale_dtype, stored)
        if upper is None:
            return values
        columns = np.arange(stored.shape[1]) // terms * self.format.group_size // (self.format.super_group or 1 << 62)
        return values * upper.astype(np.float32)[:, columns]

    def dequantize(self) -> np.ndarray:
        """Return the values, f32 [N, K]: the sum of scales * (level - zero - zeros) over the terms, then + mins.

        Each product and each sum rounds once; term 0 is the first summand.
        """
        n, k = self.shape
        codes = self.codes().reshape(n, self.format.terms, k)
        scales = self.scale_values().reshape(n, -1, self.format.terms)
        values = self._term(codes[:, 0], scales[:, :, 0])
        for term in range(1, self.format.terms):
            values += self._term(codes[:, term], scales[:, :, term])
        if self.mins is not None:
            values += self._spread(self.min_values())
        return values

    def _term(self, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """f32 [N, K]: the part of the value that one set of codes makes."""
        values = self.format.worth(codes, np.dtype(np.float32))
        if self.zeros is not None:
            values -= self._spread(self.zeros)
        values *= self._spread(scales)
        return values

    def _spread(self, per_group: np.ndarray) -> np.ndarray:
        """Give every weight the value of its group: [N, G] to f32 [N, K], or [N, 1] for one group per row."""
        values = per_group.astype(np.float32)
        if self.format.group_size == 0:
            return values
        return np.repeat(values, self.format.group_size, axis=1)[:, : self.shape[1]]

    def rows(self, index: Any) -> QTensor:
        """Select or permute rows: a slice, a list or array of row numbers, or a mask [N]."""
        parts = {name: part if part is None else part[index] for name, part in self._arrays().items()}
        packed = parts["packed"]
        assert packed is not None
        return QTensor(self.format, (len(packed), self.shape[1]), **parts)  # type: ignore[arg-type]

    @staticmethod
    def concat(tensors: Sequence[QTensor]) -> QTensor:
        """Stack along N.

        raises   FormatError   no tensors, or tensors of different formats or K
        """
        kinds = list(dict.fromkeys((tensor.format.name, tensor.shape[1]) for tensor in tensors))
        if len(kinds) != 1:
            got = ", ".join(f"{name} with K={k}" for name, k in kinds) or "none"
            raise FormatError(f"expected weights of one format and one K, got {got}; stack only weights that agree")

        parts = [tensor._arrays() for tensor in tensors]
        stacked = {
            name: None if first is None else np.concatenate([part[name] for part in parts])
            for name, first in parts[0].items()
        }
        n = sum(tensor.shape[0] for tensor in tensors)
        return QTensor(tensors[0].format, (n, kinds[0][1]), **stacked)  # type: ignore[arg-type]


def _kind(array: np.ndarray) -> str:
    """Spell dtype and shape for an error message."""
    return f"{array.dtype} [{', '.join(map(str, array.shape))}]"


def _check(form: Format, name: str, array: np.ndarray, kind: str, shape: tuple[int, int]) -> None:
    dtype = scale_types.DTYPES[kind]
    if array.dtype != dtype or array.shape != shape:
        raise FormatError(f"{form.name}: {name}: expected {dtype} [{shape[0]}, {shape[1]}], got {_kind(array)}; "
                          "convert it, or choose the format that it fits")  # fmt: skip
    if not scale_types.is_finite(kind, array):
        raise FormatError(f"{form.name}: {name}: expected finite values, got inf or nan; "
                          "the weight is damaged, or too large for this type")  # fmt: skip


def _check_beside(form: Format, name: str, array: np.ndarray | None, wanted: tuple[str, int] | None, n: int) -> None:
    """Check an array that the format has, or has not."""
    if (array is None) == (wanted is not None):
        needs = "needs" if array is None else "does not take"
        axis = "scale_kind" if name.startswith("super") else "offset"
        raise FormatError(f"{form.name}: {name}: this format {needs} them ({axis} is {getattr(form, axis)}); "
                          f"{'give' if array is None else 'leave out'} {name}")  # fmt: skip
    if array is not None and wanted is not None:
        _check(form, name, array, wanted[0], (n, wanted[1]))


def _with_padding(form: Format, k: int, per_group: np.ndarray | None, terms: int = 1) -> np.ndarray | None:
    """Add zeros for the groups behind ceil(K / group_size), if exactly these are missing."""
    if per_group is None or form.group_size == 0 or per_group.shape[1:] != (-(-k // form.group_size) * terms,):
        return per_group
    return np.pad(per_group, ((0, 0), (0, form.num_groups(k) * terms - per_group.shape[1])))


def _side_by_side(form: Format, codes: np.ndarray) -> np.ndarray:
    """Lay the terms of each group one after the other: uint8 [N, T, K] to [N, padded K * T]."""
    n, terms, k = codes.shape
    padded = np.full((n, terms, form.padded_k(k)), form.zero, np.uint8)
    padded[:, :, :k] = codes
    return padded.reshape(n, terms, form.num_groups(k), -1).swapaxes(1, 2).reshape(n, -1)
