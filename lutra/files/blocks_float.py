"""GGUF types of 4-bit floats: MXFP4 and NVFP4.  Layouts as in blocks.py; the levels are tables.TABLES["e2m1"]."""

from __future__ import annotations

import numpy as np

from lutra.errors import FormatError
from lutra.files.fields import Parts, nibbles, rows
from lutra.formats import catalog
from lutra.formats.tables import TABLES

MXFP4 = catalog.table("e2m1", 32, scale_dtype="e8m0")
NVFP4 = catalog.table("e2m1", 16, scale_dtype="e4m3", super_dtype="f32", super_group=0)
NV_HALF = np.float32(0.5)  # e2m1 counts in halves
E4M3_NAN = 0x7F  # means 0 here; so does the sign bit


def mxfp4(blocks: np.ndarray) -> Parts:
    """e u8 | 16 bytes of nibbles: weights 0-15 low, 16-31 high.  e2m1 * 2**(e - 128).

    raises   FormatError   e = 255, which is NaN; e = 0 beside a weight that is not 0, since half of 2**-127 has no
                           exponent of its own
    """
    exponents, codes = blocks[..., 0], nibbles(blocks[..., 1:17])
    if ((exponents == 0)[..., None] & (TABLES["e2m1"][codes] != 0)).any():
        raise FormatError("expected exponents above 0 beside weights that are not 0, got 0; quantise the model again")
    if (exponents == 255).any():
        raise FormatError("expected exponents that are numbers, got 255, which is NaN; the file is damaged")
    return Parts(rows(codes), np.maximum(exponents, 1) - np.uint8(1))


def nvfp4(blocks: np.ndarray) -> Parts:
    """4 bytes: an unsigned e4m3 scale for each 16 weights | 4 x 8 bytes of nibbles: weights 0-7 low, 8-15 high."""
    scales = blocks[..., 0:4] & 0x7F
    codes = nibbles(blocks[..., 4:36].reshape(*blocks.shape[:2], 4, 8))
    half = np.full((len(blocks), 1), NV_HALF, np.float32)
    return Parts(rows(codes), rows(np.where(scales == E4M3_NAN, np.uint8(0), scales)), super_scales=half)
