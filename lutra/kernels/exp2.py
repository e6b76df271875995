"""Powers of two for softmax: what attention turns scores into, on f32 vectors.

`exp2` is traced into the kernel that calls it; `exp2_spec` is the same arithmetic in NumPy, equal bit for bit.

exp2   2**v for -126 <= v <= 0, at most 3 ulp off (tested against float64), 1 for 0; 0 for anything smaller and for NaN.
       v is split as n + f with |f| <= 1/2: adding 1.5 * 2**23 rounds to n and leaves it in the lowest bits, whence it
       goes into the exponent of a polynomial in f.  8 instructions fewer than elementwise.exp, which takes any number.
"""

from __future__ import annotations

import numpy as np

from lutra.compiler.language import Value, bitcast, f32, i32, select

LOG2_E = 1.4426950408889634
SMALLEST = -126.0  # 2**v keeps a normal exponent
_MAGIC = 12582912.0  # 1.5 * 2**23
# 2**f = 1 + C1 f + ... + C5 f**5: least maximum relative error on |f| <= 1/2, which is 9.2e-8
_C1, _C2, _C3 = 0.6931470036506653, 0.24022242426872253, 0.05550733581185341
_C4, _C5 = 0.009671512991189957, 0.001326472731307149


def exp2(v: Value) -> Value:
    """2**v, 0 below -126."""
    shifted = v + _MAGIC
    f = v - (shifted - _MAGIC)
    f2 = f * f
    p = (f * _C1 + 1.0) + f2 * ((f * _C3 + _C2) + f2 * (f * _C5 + _C4))
    power = bitcast(bitcast(p, i32) + (bitcast(shifted, i32) << 23), f32)
    return select(v >= SMALLEST, power, 0.0)


def exp2_spec(v: np.ndarray) -> np.ndarray:
    """`exp2` in NumPy: f32 in, f32 out, any shape."""
    one = np.float32
    with np.errstate(invalid="ignore", over="ignore"):
        shifted = v + one(_MAGIC)
        f = v - (shifted - one(_MAGIC))
        f2 = f * f
        p = (f * one(_C1) + one(1)) + f2 * ((f * one(_C3) + one(_C2)) + f2 * (f * one(_C5) + one(_C4)))
        power = (p.view(np.int32) + (shifted.view(np.int32) << np.int32(23))).view(np.float32)
        return np.where(v >= one(SMALLEST), power, one(0))
