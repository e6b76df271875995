"""Round fitted scales to the types a format stores them in, and choose the codes once more for what is stored.

float       f16, bf16, f32
two-level   a float for many groups times a small number per group, u8, i8 or e4m3: NVIDIA's rule for NVFP4, and the
            cheap way to have short groups.  The float is (largest |scale| it serves) / (largest small number)
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from lutra.errors import FormatError
from lutra.formats import scales as scale_types
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.quantize.groups import Fitted
from lutra.quantize.levels import recode

LARGEST = {"u8": 255.0, "i8": 127.0, "e4m3": 448.0}  # type of the small number -> the largest


def store(fitted: Fitted, format: Format, w: np.ndarray) -> QTensor:
    """Make a QTensor of what was fitted to w, its codes the nearest for the stored scales.

    raises   FormatError   scales too large for their type, or of a sign it does not have
    """
    k = w.shape[1]
    parts = stored_scales("scales", fitted.scales, format, k)
    if fitted.mins is not None:
        parts |= stored_scales("mins", fitted.mins, format, k)
    codes = fitted.codes if format.terms > 1 else fitted.codes[:, 0]
    return recode(QTensor.from_codes(format, np.ascontiguousarray(codes), **parts), w)


def stored_scales(name: str, wanted: np.ndarray, format: Format, k: int) -> dict[str, np.ndarray]:
    """Return the arrays of a QTensor that hold scales or mins.

    name     "scales" | "mins"
    wanted   f32 [N, G * terms], or [N, G] for mins
    raises   FormatError   as store
    """
    if format.scale_kind == "float":
        return {name: as_float_type(wanted, format)}
    small, upper = two_level(wanted, format, k, format.terms if name == "scales" else 1)
    return {name: small, f"super_{name}": upper}


def as_float_type(values: np.ndarray, format: Format) -> np.ndarray:
    """Round f32 values to the float type of a format's scales.

    raises   FormatError   too large for it
    """
    with np.errstate(over="ignore"):
        stored = values.astype(format.dtype)
    if not np.isfinite(stored.astype(np.float32)).all():
        raise FormatError(
            f"{format.name}: expected weights in reach of {format.scale_dtype} scales, got a group that "
            f"needs {np.abs(values).max():g}; use a format with f32 scales"
        )
    return stored


def two_level(wanted: np.ndarray, format: Format, k: int, terms: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Split scales into small numbers and the floats they share.

    wanted   f32 [N, G * terms]
    returns  the small numbers as stored [N, G * terms], the floats [N, S]; where a float serves a row, all rows have
             that of the whole matrix, as NVIDIA has it
    raises   FormatError   too large for the float's type; signs that u8 does not have
    """
    largest, size = LARGEST[format.scale_dtype], np.abs(wanted)
    sign = np.float32(1)
    if format.scale_dtype == "u8" and (wanted < 0).any():
        if (wanted > 0).any():
            raise FormatError(f"{format.name}: expected values of one sign for u8, got both; use i8 or e4m3")
        sign = np.float32(-1)
    if format.super_group:
        starts = np.arange(0, size.shape[1], format.super_group // format.group_size * terms)
        most = np.maximum.reduceat(size, starts, axis=1)
    else:
        most = np.full((len(size), 1), size.max(), np.float32)
    upper = (sign * most / np.float32(largest)).astype(scale_types.DTYPES[format.super_dtype])
    if not np.isfinite(upper).all():
        raise FormatError(
            f"{format.name}: expected scales in reach of {format.super_dtype}, got {size.max():g}; use f32"
        )
    upper = np.pad(upper, ((0, 0), (0, format.num_supers(k) - upper.shape[1])))
    wide = of_groups(upper, wanted.shape[1], format, terms)
    ratio = np.divide(wanted, wide, out=np.zeros_like(wanted), where=wide != 0)
    ratio = ratio.clip(-largest, largest)  # cut first: the cast to e4m3 makes NaN of 465
    if format.scale_dtype == "e4m3":
        return ratio.astype(ml_dtypes.float8_e4m3fn).view(np.uint8), upper
    return np.rint(ratio).astype(format.dtype), upper


def of_groups(upper: np.ndarray, columns: int, format: Format, terms: int = 1) -> np.ndarray:
    """Give every small number the f32 that it is multiplied with: [N, S] to [N, columns]."""
    each = format.super_group // format.group_size * terms if format.super_group else columns
    return np.repeat(upper.astype(np.float32), each, axis=1)[:, :columns]
