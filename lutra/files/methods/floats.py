"""Small floats as checkpoints store them: pairs of 4-bit codes, FP4 blocks with scales, FP8 matrices."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from lutra.errors import FormatError
from lutra.files.methods.layout import DAMAGED, Parts, matrix
from lutra.formats import catalog
from lutra.formats.qtensor import QTensor
from lutra.formats.scales import DTYPES
from lutra.formats.scales import FLOATS as FLOAT_SCALES
from lutra.formats.tables import FLOATS

NV_GROUP, MX_GROUP = 16, 32
FP8_BLOCK = 128  # rows and columns that share a scale where a matrix has a scale per block


def nvfp4(codes: np.ndarray, scales: np.ndarray, factor: np.ndarray) -> QTensor:
    """NVFP4: e2m1 codes, an e4m3 scale for 16 weights, an f32 factor for the tensor.

    codes    uint8 [N, K]     scales  float8_e4m3fn [N, K / 16]     factor  f32 [1]
    raises   FormatError      shapes that disagree, a scale that is NaN, a factor that is not finite
    """
    n, k = codes.shape
    if scales.dtype != ml_dtypes.float8_e4m3fn:
        raise FormatError(f"weight_scale: expected float8_e4m3fn, got {scales.dtype}; {DAMAGED}")
    if scales.shape != (n, k // NV_GROUP) or k % NV_GROUP or factor.size != 1:
        raise FormatError(f"weight_scale: expected {(n, k // NV_GROUP)} and one factor, got {scales.shape} and "
                          f"{factor.size}; {DAMAGED}")  # fmt: skip
    half = np.full((n, 1), factor.reshape(-1)[0] * np.float32(0.5), np.float32)  # our e2m1 counts in halves
    form = catalog.table("e2m1", NV_GROUP, scale_dtype="e4m3", super_dtype="f32", super_group=0)
    return QTensor.from_codes(form, codes, scales.view(np.uint8), super_scales=half)


def mxfp4(codes: np.ndarray, exponents: np.ndarray) -> QTensor:
    """MXFP4: e2m1 codes, a power of two for 32 weights.

    codes      uint8 [N, K]     exponents  uint8 [N, K / 32], value 2**(e - 127)
    raises     FormatError      shapes that disagree; the exponent 255, which is NaN
    """
    n, k = codes.shape
    if exponents.shape != (n, k // MX_GROUP) or k % MX_GROUP:
        raise FormatError(f"weight_scale: expected {(n, k // MX_GROUP)}, got {exponents.shape}; {DAMAGED}")
    if (exponents == 0).any():  # half of 2**-127 has no exponent of its own
        raise FormatError("weight_scale: expected exponents above 0, got 0; quantise the float model with lutra")
    if (exponents == 255).any():
        raise FormatError(f"weight_scale: expected numbers, got NaN (exponent 255); {DAMAGED}")
    return QTensor.from_codes(catalog.table("e2m1", MX_GROUP, scale_dtype="e8m0"), codes, exponents - np.uint8(1))


def fp8_shape(parts: Parts) -> tuple[int, int]:
    """(N, K) of a matrix of 8-bit floats."""
    return matrix(parts, "weight", *FLOATS.values())


def fp8(values: np.ndarray, scale: np.ndarray) -> QTensor:
    """FP8 with its scale, which holds for the tensor, a row, or a block of 128 columns of one row or of 128.

    values   float8_e4m3fn or float8_e5m2 [N, K]
    scale    f32, f16 or bf16; it stays what it is
    raises   FormatError      a scale of no such shape or type, values that are not finite
    """
    n, k = values.shape
    columns = -(-k // FP8_BLOCK)
    blocks = (-(-n // FP8_BLOCK), columns)
    if scale.shape == blocks and scale.size > 1:
        scale = np.repeat(scale, FP8_BLOCK, 0)[:n]
    elif scale.size == 1 or scale.shape in ((n,), (n, 1)):
        scale = np.repeat(scale.reshape(-1, 1), n // scale.size, 0)
    elif scale.shape != (n, columns):
        raise FormatError(f"weight_scale: expected 1, {(n, 1)}, {blocks} or {(n, columns)}, got {scale.shape}; "
                          f"{DAMAGED}")  # fmt: skip
    name = next(name for name, dtype in FLOATS.items() if dtype == values.dtype)
    form = catalog.table(name, FP8_BLOCK if scale.shape[1] > 1 else 0, scale_dtype=scale_name(scale))
    return QTensor.from_codes(form, values.view(np.uint8), np.ascontiguousarray(scale))


def scale_name(scale: np.ndarray) -> str:
    """What formats call the type of a float scale.  Raises FormatError for another."""
    found = next((name for name in FLOAT_SCALES if DTYPES[name] == scale.dtype), None)
    if found is None:
        raise FormatError(f"weight_scale: expected {', '.join(FLOAT_SCALES)}, got {scale.dtype}; {DAMAGED}")
    return found
