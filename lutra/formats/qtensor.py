"""A quantised matrix: packed codes, their scales, and the format that says what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lutra.errors import FormatError
from lutra.formats import packing
from lutra.formats.format import Format

# Weights that one int32 may sum: 65536 * 255 * 127 < 2**31, for any code and any int8 activation (never -128).
MAX_GROUP_WIDTH = 1 << 16


@dataclass(frozen=True, eq=False)
class QTensor:
    """The weight of y = x @ W.T, rows as kernels read them.

    format   Format
    shape    (N, K)                   true sizes; rows are stored with format.padded_k(K) columns
    packed   uint8 [N, row_bytes]     the packed order of packing.py
    scales   f16 | f32 [N, G]         finite; G = format.num_groups(K)
    zeros    uint8 [N, G] or None     0 .. 2**bits, in units of codes
    mins     f16 | f32 [N, G] or None

    raises   FormatError   another shape or type; a code the format does not have; a scale that is not finite
    """

    format: Format
    shape: tuple[int, int]
    packed: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None = None
    mins: np.ndarray | None = None

    def __post_init__(self) -> None:
        n, k = self.shape
        form = self.format
        if n < 1 or k < 1:
            raise FormatError(f"{form.name}: expected at least one row and one column, got shape ({n}, {k})")
        width = form.group_size or self.padded_k
        if width > MAX_GROUP_WIDTH:
            raise FormatError(f"{form.name}: expected at most {MAX_GROUP_WIDTH} weights to share a scale, got K={k}; "
                              "use a format with groups")  # fmt: skip
        groups = (n, form.num_groups(k))
        _check(form, "packed", self.packed, np.dtype(np.uint8), (n, form.row_bytes(k)))
        _check(form, "scales", self.scales, form.dtype, groups)
        _check_offset(form, "zeros", self.zeros, np.dtype(np.uint8), groups)
        _check_offset(form, "mins", self.mins, form.dtype, groups)
        if self.zeros is not None and int(self.zeros.max()) > 2**form.bits:
            raise FormatError(f"{form.name}: zeros: expected at most {2**form.bits}, got {int(self.zeros.max())}; "
                              "give zeros in units of codes")  # fmt: skip
        if form.alphabet == "trit" and self._has_code_3():
            raise FormatError(f"{form.name}: expected ternary codes 0 to 2 (value + 1), got 3; "
                              "the weight is damaged, or needs planes of 2 bits")  # fmt: skip

    def _has_code_3(self) -> bool:
        words = np.ascontiguousarray(self.packed).view(np.uint32)
        return any(packing.has_code_3(words[rows]) for rows in packing.row_blocks(*self.packed.shape))

    @classmethod
    def from_codes(cls, format: Format, codes: np.ndarray, scales: np.ndarray,
                   zeros: np.ndarray | None = None, mins: np.ndarray | None = None) -> QTensor:  # fmt: skip
        """Pack codes; groups that are only padding get scale, zero and min 0.

        codes    uint8 [N, K]                  0 .. format.num_codes - 1
        scales   format.dtype [N, G]           G may leave out groups that are only padding; so may zeros and mins
        raises   FormatError                   as the class does
        """
        if codes.ndim != 2 or codes.dtype != np.uint8:
            raise FormatError(f"{format.name}: codes: expected uint8 [N, K], got {_kind(codes)}; give codes as bytes")
        n, k = codes.shape
        packed = packing.pack(codes, format.bits, format.padded_k(k), format.zero)
        extras = (_with_padding(format, k, values) for values in (scales, zeros, mins))
        return cls(format, (n, k), packed, *extras)  # type: ignore[arg-type]  # scales given are never None

    @property
    def padded_k(self) -> int:
        """Columns stored, padding included."""
        return self.format.padded_k(self.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and offsets."""
        return sum(part.nbytes for part in (self.packed, self.scales, self.zeros, self.mins) if part is not None)

    def codes(self) -> np.ndarray:
        """Return the codes, uint8 [N, K], padding left out."""
        return packing.unpack(self.packed, self.format.bits, self.shape[1])

    def dequantize(self) -> np.ndarray:
        """Return the values, f32 [N, K]: scales * (codes - zero - zeros) + mins; product and sum each round once."""
        values = self.codes().astype(np.float32) - np.float32(self.format.zero)
        if self.zeros is not None:
            values -= self._spread(self.zeros)
        values *= self._spread(self.scales)
        if self.mins is not None:
            values += self._spread(self.mins)
        return values

    def _spread(self, per_group: np.ndarray) -> np.ndarray:
        """Give every weight the value of its group: [N, G] to f32 [N, K], or [N, 1] for one group per row."""
        values = per_group.astype(np.float32)
        if self.format.group_size == 0:
            return values
        return np.repeat(values, self.format.group_size, axis=1)[:, : self.shape[1]]

    def rows(self, index: Any) -> QTensor:
        """Select or permute rows: a slice, a list or array of row numbers, or a mask [N]."""
        parts = (part if part is None else part[index] for part in (self.packed, self.scales, self.zeros, self.mins))
        packed, scales, zeros, mins = parts
        assert packed is not None and scales is not None
        return QTensor(self.format, (len(packed), self.shape[1]), packed, scales, zeros, mins)

    @staticmethod
    def concat(tensors: Sequence[QTensor]) -> QTensor:
        """Stack along N.

        raises   FormatError   no tensors, or tensors of different formats or K
        """
        kinds = list(dict.fromkeys((tensor.format.name, tensor.shape[1]) for tensor in tensors))
        if len(kinds) != 1:
            got = ", ".join(f"{name} with K={k}" for name, k in kinds) or "none"
            raise FormatError(f"expected weights of one format and one K, got {got}; stack only weights that agree")

        def stack(name: str) -> np.ndarray | None:
            parts = [getattr(tensor, name) for tensor in tensors]
            return None if parts[0] is None else np.concatenate(parts)

        packed, scales, zeros, mins = (stack(name) for name in ("packed", "scales", "zeros", "mins"))
        assert packed is not None and scales is not None
        return QTensor(tensors[0].format, (len(packed), kinds[0][1]), packed, scales, zeros, mins)


def _kind(array: np.ndarray) -> str:
    """Spell dtype and shape for an error message."""
    return f"{array.dtype} [{', '.join(map(str, array.shape))}]"


def _check(form: Format, name: str, array: np.ndarray, dtype: np.dtype, shape: tuple[int, int]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise FormatError(f"{form.name}: {name}: expected {dtype} [{shape[0]}, {shape[1]}], got {_kind(array)}; "
                          "convert it, or choose the format that it fits")  # fmt: skip
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise FormatError(f"{form.name}: {name}: expected finite values, got inf or nan; "
                          "the weight is damaged, or too large for this type")  # fmt: skip


def _check_offset(form: Format, name: str, array: np.ndarray | None, dtype: np.dtype, shape: tuple[int, int]) -> None:
    if (array is None) == (form.offset == name):
        needs = "needs" if array is None else "does not take"
        raise FormatError(f"{form.name}: {name}: this format {needs} them (offset is {form.offset}); "
                          f"{'give' if array is None else 'leave out'} {name}")  # fmt: skip
    if array is not None:
        _check(form, name, array, dtype, shape)


def _with_padding(form: Format, k: int, per_group: np.ndarray | None) -> np.ndarray | None:
    """Add zeros for the groups behind ceil(K / group_size), if exactly these are missing."""
    num_groups = form.num_groups(k)
    if per_group is None or form.group_size == 0 or per_group.shape[1:] != (-(-k // form.group_size),):
        return per_group
    return np.pad(per_group, ((0, 0), (0, num_groups - per_group.shape[1])))
