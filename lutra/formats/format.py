"""What a format is: one choice on each axis of a single storage model.

The axes do not depend on one another.  Kernels, files and quantisers ask a format for its axes and never for its name,
so a format nobody has thought of yet works when its axes do.

    W[n, k] = scales[n, g] * (codes[n, k] - zero - zeros[n, g]) + mins[n, g]          g = k // group_size
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lutra.errors import FormatError
from lutra.formats import packing

# axis -> the values that exist.  A new value is a word here, its meaning in integer.py, and a kernel.
AXES: dict[str, tuple[object, ...]] = {
    "storage": ("planes", "bytes"),
    "bits": (1, 2, 3, 4, 5, 6, 7, 8),
    "alphabet": ("uniform", "trit"),
    "tie": ("tied",),
    "scale_kind": ("float",),
    "group_size": (0, 16, 32, 64, 128, 256),
    "scale_dtype": ("f16", "f32"),
    "offset": ("none", "zeros", "mins"),
    "sidecars": ((),),
}
DTYPES: dict[str, np.dtype[Any]] = {"f16": np.dtype(np.float16), "f32": np.dtype(np.float32)}
OFFSET_BITS = {"none": 0, "zeros": 8}  # per group; mins are as wide as scales


@dataclass(frozen=True)
class Format:
    """A row of the catalogue.  Make one with `catalog.planes`, `catalog.ternary`, `catalog.int8` or `catalog.find`.

    name              "ternary", "planes4-g32-mins", ...: the axes, spelled by catalog.py
    storage           "planes": codes of 1-7 bits, split or kept as packed words; "bytes": codes of 8 bits
    bits              width of one code
    group_size        weights along K that share one scale; 0 = the whole row
    zero              constant taken from every code: 1 for ternary, 8 for symmetric 4 bits, 128 for int8
    scale_dtype       "f16" | "f32"
    offset            "none" | "zeros": uint8 [N, G] in units of codes | "mins": float [N, G] added to the value
    activation_group  activations that share one int8 scale: 0 = all of a token, else group_size
    sidecars          extras beside the weight (a permutation, outliers, low-rank terms); none has a kernel yet
    alphabet          "uniform": every code has a meaning; "trit": only 0, 1, 2 (of 2 bits)
    tie               "tied": bit b of a code weighs 2**b; planes with a scale each would be another word
    scale_kind        "float": one float per group; powers of two or two levels would be other words

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
    sidecars: tuple[str, ...] = ()
    alphabet: str = "uniform"
    tie: str = "tied"
    scale_kind: str = "float"

    def __post_init__(self) -> None:
        for axis, values in AXES.items():
            self._expect(getattr(self, axis) in values, axis, f"one of {', '.join(map(str, values))}")
        self._expect((self.storage == "bytes") == (self.bits == 8), "storage", "bytes for 8 bits, planes for fewer")
        self._expect(0 <= self.zero < 2**self.bits, "zero", f"a code, 0 to {2**self.bits - 1}")
        self._expect(self.alphabet == "uniform" or self.bits == 2, "alphabet", "uniform unless codes have 2 bits")
        self._expect(self.activation_group in (0, self.group_size), "activation_group", f"0 or {self.group_size}")

    def _expect(self, holds: bool, axis: str, expected: str) -> None:
        if not holds:
            raise FormatError(f"format {self.name}: {axis}: expected {expected}, got {getattr(self, axis)}; "
                              "choose a format that `lutra inspect format` lists")  # fmt: skip

    @property
    def num_codes(self) -> int:
        """Codes are 0 .. num_codes - 1."""
        return 3 if self.alphabet == "trit" else 2**self.bits

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy type of scales and mins."""
        return DTYPES[self.scale_dtype]

    def padded_k(self, k: int) -> int:
        """Columns a row of k weights is stored with: whole blocks of 32, whole groups."""
        return packing.padded_k(k, self.group_size)

    def num_groups(self, k: int) -> int:
        """G: scales per row of k weights, those of padding included."""
        return self.padded_k(k) // self.group_size if self.group_size else 1

    def row_bytes(self, k: int) -> int:
        """Bytes of one packed row of k weights, scales not included."""
        return self.padded_k(k) * self.bits // 8

    def group_bits(self) -> int:
        """Bits beside the codes of one group: its scale and its offset."""
        scale_bits = 8 * self.dtype.itemsize
        return scale_bits + OFFSET_BITS.get(self.offset, scale_bits)

    def bits_per_weight(self, k: int) -> float:
        """Bits stored per weight in rows of k weights: codes, scales, offsets and padding."""
        return (8 * self.row_bytes(k) + self.num_groups(k) * self.group_bits()) / k
