"""Small floats as checkpoints store them: pairs of 4-bit codes, FP4 blocks with scales, FP8 matrices."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from lutra.errors import FormatError
from lutra.files.methods.layout import DAMAGED
from lutra.formats import catalog
from lutra.formats.qtensor import QTensor

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


def fp8_matrix(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """FP8 times its scale, which holds for the tensor, a row, or a block of 128 x 128.

    values   float8_e4m3fn or float8_e5m2 [N, K]
    returns  f32 [N, K]       each product rounded once
    raises   FormatError      another type, a scale of no such shape, values that are not finite
    """
    if values.dtype not in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2) or values.ndim != 2:
        raise FormatError(f"weight: expected a matrix of 8-bit floats, got {values.dtype} {values.shape}; {DAMAGED}")
    n, k = values.shape
    blocks = (-(-n // FP8_BLOCK), -(-k // FP8_BLOCK))
    scale = scale.astype(np.float32)
    if scale.shape == blocks and scale.size > 1:
        scale = np.repeat(np.repeat(scale, FP8_BLOCK, 0)[:n], FP8_BLOCK, 1)[:, :k]
    elif scale.size in (1, n):
        scale = scale.reshape(-1, 1)
    else:
        raise FormatError(f"weight_scale: expected 1, {n} or {blocks} values, got {scale.shape}; {DAMAGED}")
    wide = values.astype(np.float32) * scale
    if not np.isfinite(wide).all():
        raise FormatError(f"weight: expected finite values, got inf or nan; {DAMAGED}")
    return wide
