"""Element types, vector types and pointers of the kernel language."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class DType:
    """One element: its name, size, how numbers are read from it, and its NumPy and LLVM spellings.

    f16 and bf16 are storage only: LLVM sees them as i16 until `convert` makes them f32.
    """

    name: str
    bits: int
    kind: str  # "bool" | "int" | "uint" | "float"
    numpy: Any
    llvm: str

    def __repr__(self) -> str:
        return self.name

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def size_bytes(self) -> int:
        return self.bits // 8


i1 = DType("i1", 1, "bool", np.bool_, "i1")
i8 = DType("i8", 8, "int", np.int8, "i8")
u8 = DType("u8", 8, "uint", np.uint8, "i8")
i16 = DType("i16", 16, "int", np.int16, "i16")
u16 = DType("u16", 16, "uint", np.uint16, "i16")
i32 = DType("i32", 32, "int", np.int32, "i32")
u32 = DType("u32", 32, "uint", np.uint32, "i32")
i64 = DType("i64", 64, "int", np.int64, "i64")
f16 = DType("f16", 16, "float", np.float16, "i16")
bf16 = DType("bf16", 16, "float", ml_dtypes.bfloat16, "i16")
f32 = DType("f32", 32, "float", np.float32, "float")

DTYPES = {t.name: t for t in (i1, i8, u8, i16, u16, i32, u32, i64, f16, bf16, f32)}


@dataclass(frozen=True)
class Type:
    """A scalar (lanes = 1) or a SIMD vector of `lanes` elements."""

    dtype: DType
    lanes: int = 1

    def __repr__(self) -> str:
        return self.dtype.name if self.lanes == 1 else f"{self.dtype.name}x{self.lanes}"

    @property
    def llvm(self) -> str:
        return self.dtype.llvm if self.lanes == 1 else f"<{self.lanes} x {self.dtype.llvm}>"

    def with_dtype(self, dtype: DType) -> Type:
        return Type(dtype, self.lanes)


@dataclass(frozen=True)
class Pointer:
    """A typed address; `Pointer[f32]` in a kernel's signature.  Indexed in elements, never in bytes."""

    dtype: DType
    lanes: int = 0  # a pointer has no lanes; the field lets `value.type.lanes` be asked of anything

    def __class_getitem__(cls, dtype: DType) -> Pointer:
        return cls(dtype)

    def __repr__(self) -> str:
        return f"*{self.dtype.name}"

    @property
    def llvm(self) -> str:
        return "ptr"
